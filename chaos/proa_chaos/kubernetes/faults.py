"""Faults on pods: the API takes them away, Chaos Mesh does what takes privilege, the others act
in-band."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proa.errors import NotSupported, Unavailable
from proa_chaos.experiment import PARTS
from proa_chaos.inband import InBand, acting, check
from proa_chaos.kubernetes.mesh import Mesh, by_mesh
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.plan import Hit


@dataclass(frozen=True)
class Ways:
    """By which a run reaches the pods that it breaks. `prefix`: of the ids of its faults."""

    pods: Pods
    removal: Removal
    mesh: Mesh
    prefix: str


REMOVALS = ("kill", "kill-shard", "drain")


class PodFaults:
    """`parallel`: although faults of others are in force. `check_known`: raises for a hit that the
    place cannot act out in-band."""

    def __init__(
        self,
        ways: Ways,
        in_band: InBand,
        *,
        parallel: bool = False,
        check_known: Callable[[Hit], None] = lambda _hit: None,
    ) -> None:
        self._removal, self._mesh, self._in_band = ways.removal, ways.mesh, in_band
        self._prefix, self._parallel = ways.prefix, parallel
        self._check_known = check_known
        self._covered: set[str] = set()

    async def prepare(self, hits: Sequence[Hit]) -> None:
        """See `Place`."""
        await self._mesh.check([hit for hit in hits if by_mesh(hit.fault)])
        hits = [hit for hit in hits if not by_mesh(hit.fault)]
        removed = [hit for hit in hits if hit.fault.action in REMOVALS]
        self._cover([hit for hit in removed if hit.fault.action == "drain"])
        for hit in removed:
            if hit.fault.parameters.what != PARTS[0]:
                raise NotSupported(f"{hit.text}: a pod is killed whole; leave out `what`")
        await self._removal.check(removed)
        in_band = [hit for hit in hits if hit.fault.action not in REMOVALS]
        for hit in in_band:
            if hit.fault.parameters.how == "process":
                raise NotSupported(f"{hit.text}: a pod cannot be frozen; calls can (how: calls)")
            check(hit)
            self._check_known(hit)
        targets = list({acting(hit) for hit in in_band})
        for target, active in zip(
            targets, await asyncio.gather(*map(self._in_band.active, targets)), strict=True
        ):
            others = [one.id for one in active if not one.id.startswith(self._prefix)]
            if others and not self._parallel:
                raise Unavailable(
                    f"{target.name} is under faults of another run: {', '.join(others)}; they end"
                    " by themselves, wait for that"
                )

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        """See `Place`."""
        match hit.fault.action:
            case _ if by_mesh(hit.fault):
                await self._mesh.inject(hit, ttl_s)
            case "kill" | "kill-shard":
                await self._removal.kill(hit, ttl_s)
            case "drain":
                if hit.id not in self._covered:
                    await self._removal.drain(hit, ttl_s)
            case _:
                await self._in_band.inject(hit, ttl_s)

    async def end(self, hit: Hit) -> None:
        """See `Place`."""
        if by_mesh(hit.fault):
            await self._mesh.end(hit)
        elif hit.fault.action in REMOVALS:
            await self._removal.end(hit)
        else:
            await self._in_band.clear(hit)

    def _cover(self, drains: Sequence[Hit]) -> None:
        """The first hit of a node drains it; the others are of pods that leave with it."""
        seen = set()
        for hit in drains:
            node = (hit.fault.name, hit.start_s, hit.target.machine)
            if node in seen:
                self._covered.add(hit.id)
            seen.add(node)

    async def close(self) -> None:
        """Take nobody away any more."""
        await self._removal.close()
