"""The guard against experiments that break more than the redundancy can bear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proa.errors import InvalidRequest
from proa_chaos.experiment import STORE_ACTIONS
from proa_chaos.plan import Hit
from proa_chaos.selection import PARITY_ROLE, Target

# A process that was killed, drained, or frozen long enough to be replaced, is away for longer than
# its fault: it has to start again.
RESTART_S = 30.0
_MACHINE = ("cpu-hog",)  # takes nobody away
_RESTARTS = ("kill", "drain", *STORE_ACTIONS)


@dataclass(frozen=True)
class Pool:
    """Targets that stand in for each other. `ready`: names of those that serve now.

    At most `domains_max` failure domains of it may be hit at once, and `ready_min` must stay ready.
    `parity`: workers for parity alone, where there are such. They may all be hit, as nobody waits
    for them; but then fewer of the members may be, or none: one for each parity domain left.
    """

    name: str
    members: tuple[Target, ...]
    ready: frozenset[str]
    domains_max: int
    ready_min: int
    parity: tuple[Target, ...] = ()


def worker_pool(
    model: str, workers: Sequence[Target], ready: frozenset[str], k: int, r: int
) -> Pool:
    """The workers of `model`, coded with (`k`, `r`). `ready`: names of those that serve now."""
    parity = tuple(target for target in workers if target.role == PARITY_ROLE)
    others = tuple(target for target in workers if target.role != PARITY_ROLE)
    return Pool(f"the workers of {model!r}", others, ready, r, k if parity else k + r, parity)


def shard_pool(shards: Sequence[Target], ready: frozenset[str], k: int, r: int) -> Pool:
    """The shards of a store of (`k`, `r`), with all that is part of one. `ready`: names."""
    return Pool("the store's shards", tuple(shards), ready, r, k)


def check_blast(hits: Sequence[Hit], pools: Sequence[Pool]) -> None:
    """Raise InvalidRequest when some moment of the plan breaks more than a pool may lose."""
    for hit in hits:
        active = [other for other in hits if _touches(other, hit.start_s)]
        for pool in pools:
            _check_pool(pool, [target for other in active for target in _hit_by(other)])


def _touches(hit: Hit, at_s: float) -> bool:
    if hit.fault.on_shards and hit.fault.action == "bitflip":
        return hit.start_s <= at_s  # flipped bits stay until the store has found them
    longer = hit.fault.action in _RESTARTS or hit.fault.parameters.how == "process"
    return hit.start_s <= at_s < hit.end_s + (RESTART_S if longer else 0.0)


def _hit_by(hit: Hit) -> list[Target]:
    """A partition takes the workers behind it away; the frontend on its other side stays."""
    if hit.fault.action in _MACHINE:
        return []
    if hit.fault.action != "partition" or hit.peer is None:
        return [hit.target]
    return [side for side in (hit.target, hit.peer) if side.role != "frontend"]


def _check_pool(pool: Pool, hit: Sequence[Target]) -> None:
    lost = {target.domain for target in hit if target in pool.members}
    if not lost:
        return
    names = ", ".join(sorted(lost))
    if pool.parity:
        _check_parity(pool, hit, len(lost), names)
    if len(lost) > pool.domains_max:
        raise InvalidRequest(
            f"{len(lost)} failure domains of {pool.name} would be hit at once ({names});"
            f" at most {pool.domains_max} may be, so that the rest can answer; --force overrides"
        )
    left = {m.name for m in pool.members if m.name in pool.ready and m.domain not in lost}
    if len(left) < pool.ready_min:
        raise InvalidRequest(
            f"hitting {names} would leave {len(left)} ready of {pool.name};"
            f" at least {pool.ready_min} must stay; --force overrides"
        )


def _check_parity(pool: Pool, hit: Sequence[Target], lost: int, names: str) -> None:
    left = {t.domain for t in pool.parity if t.name in pool.ready}
    left -= {target.domain for target in hit if target in pool.parity}
    if lost > len(left):
        raise InvalidRequest(
            f"hitting {names} of {pool.name} while {len(left)} of its parity pool are ready: what"
            " is lost could not be reconstructed; --force overrides"
        )
