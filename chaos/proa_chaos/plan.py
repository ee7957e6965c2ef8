"""From faults to hits: who is hit by what, from when to when. One seed gives one plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from proa.errors import InvalidRequest
from proa_chaos.experiment import PROTECTIONS, Experiment, Fault
from proa_chaos.selection import PARITY_ROLE, SHARD_ROLE, Target, choose

HITS_MAX = 512
# A plan's times may leave the phase by no more than a rounding.
_EPSILON_S = 1e-9


@dataclass(frozen=True)
class Hit:
    """One fault at one target, from `start_s` to `end_s` of the phase `during`.

    `id`: unique in a run. `peer`: the other side of a partition.
    """

    id: str
    fault: Fault
    target: Target
    start_s: float
    end_s: float
    peer: Target | None = None

    @property
    def text(self) -> str:
        """`slow-worker: slow worker-2`."""
        side = f" from {self.peer.name}" if self.peer else ""
        return f"{self.fault.name}: {self.fault.action} {self.target.name}{side}"


def plan(experiment: Experiment, targets: Sequence[Target], seed: int) -> list[Hit]:
    """All hits, in the order of their start. Errors: InvalidRequest, naming the fault, or the key
    of `requires` that does not hold."""
    _check_pool(experiment.pool, targets)
    _check_protection(experiment.protection, targets)
    hits: list[Hit] = []
    for number, fault in enumerate(experiment.faults):
        dice = random.Random(f"{seed} {number}")  # noqa: S311 - must be repeatable
        try:
            hits += _hits(fault, number, targets, experiment.workload.during_s, dice)
        except InvalidRequest as exc:
            raise InvalidRequest(f"fault {fault.name!r}: {exc}") from exc
    if len(hits) > HITS_MAX:
        raise InvalidRequest(f"the faults hit {len(hits)} times; the limit is {HITS_MAX}")
    return sorted(hits, key=lambda hit: hit.start_s)


def _check_pool(wanted: str | None, targets: Sequence[Target]) -> None:
    found = "dedicated" if any(t.role == PARITY_ROLE for t in targets) else "shared"
    if wanted not in (None, found):
        raise InvalidRequest(
            f"spec.requires.pool: this experiment is for a model with redundancy.pool {wanted!r};"
            f" this one has {found!r}"
        )


def _check_protection(wanted: str, targets: Sequence[Target]) -> None:
    """Targets are of one model, and its workers are all protected alike."""
    found = max((PROTECTIONS.index(target.protection) for target in targets), default=0)
    if found < PROTECTIONS.index(wanted):
        raise InvalidRequest(
            f"spec.requires.protection: this experiment is for a model with protection.mode"
            f" {wanted!r}; this one has {PROTECTIONS[found]!r}"
        )


def _hits(
    fault: Fault, number: int, targets: Sequence[Target], during_s: float, dice: random.Random
) -> list[Hit]:
    if fault.on_shards:
        targets = [target for target in targets if target.role == SHARD_ROLE]
    peers = choose(fault.peer, targets, dice) if fault.peer else [None]
    hits: list[Hit] = []
    last: list[Target] = []
    for start_s, end_s in _windows(fault, during_s):
        last = choose(fault.choice, targets, dice, besides=last)
        if fault.action == "drain":  # all that is on the nodes of those chosen
            nodes = {target.machine for target in last}
            last = [target for target in targets if target.machine in nodes]
        hits += [
            Hit(f"{number}.{len(hits) + i}", fault, target, start_s, end_s, peer)
            for i, (target, peer) in enumerate((t, p) for t in last for p in peers)
        ]
    return hits


def _windows(fault: Fault, during_s: float) -> list[tuple[float, float]]:
    duration_s = during_s - fault.at_s if fault.duration_s is None else fault.duration_s
    end_s = fault.at_s + duration_s
    if fault.every_s is None:
        return [(fault.at_s, end_s)]
    count = int((duration_s - _EPSILON_S) / fault.every_s) + 1
    if count > HITS_MAX:
        raise InvalidRequest(f"`every` makes {count} windows; the limit is {HITS_MAX}")
    starts = [fault.at_s + i * fault.every_s for i in range(count)]
    return list(zip(starts, [*starts[1:], end_s], strict=True))
