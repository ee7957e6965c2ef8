"""Faults on this machine: helpers hold those of the operating system, the others act in-band."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proa.errors import NotSupported, Unavailable
from proa.local.run_file import RunningProcess
from proa.local.session import start_ticks
from proa_chaos.experiment import PROA
from proa_chaos.inband import InBand, acting, check
from proa_chaos.local.helper import Helper
from proa_chaos.local.keeper import now_s
from proa_chaos.plan import Hit

# A kill happens once; its helper needs a moment of life to do it in.
ONCE_S = 0.01


class LocalFaults:
    """`running`: the processes of `run_dir` now; `names_of`: those that a hit is about.
    `faults_until`: told how long faults may act, in seconds since boot."""

    def __init__(
        self,
        run_dir: Path,
        in_band: InBand,
        running: Callable[[], Mapping[str, RunningProcess]],
        names_of: Callable[[Hit], Sequence[str]],
        faults_until: Callable[[float], None],
    ) -> None:
        self._run_dir = run_dir
        self._in_band = in_band
        self._running, self._names_of = running, names_of
        self._faults_until = faults_until
        self._until_s = 0.0
        self._helpers: dict[str, Helper] = {}
        self._covered: set[str] = set()

    async def prepare(self, hits: Sequence[Hit]) -> None:
        """See `Place`."""
        orders: dict[str, Mapping[str, Any]] = {}
        hogs: set[tuple[str, float]] = set()
        for hit in hits:
            if hit.fault.backend != PROA:
                raise NotSupported(f"{hit.text}: backend {hit.fault.backend} is for clusters")
            order = self._order(hit)
            if order is None:
                check(hit)
            if hit.fault.action == "drain" and hit.target.name not in self._names_of(hit):
                # A shard is no process: those that it is made of are on the same node, and leave.
                self._covered.add(hit.id)
                continue
            if hit.fault.action == "cpu-hog":
                # Its targets share this machine: one hog is in the way of them all.
                if (hit.fault.name, hit.start_s) in hogs:
                    self._covered.add(hit.id)
                    continue
                hogs.add((hit.fault.name, hit.start_s))
            if order is not None:
                orders[hit.id] = order
        in_band = {acting(hit) for hit in hits if hit.id not in orders.keys() | self._covered}
        await asyncio.gather(*map(self._in_band.active, in_band))  # do they take faults at all?
        helpers = await asyncio.gather(*map(Helper.start, orders.values()))
        self._helpers = dict(zip(orders, helpers, strict=True))

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        """See `Place`."""
        if hit.id in self._covered:
            return
        self._until_s = max(self._until_s, now_s() + ttl_s)
        self._faults_until(self._until_s)
        helper = self._helpers.get(hit.id)
        if helper is None:
            await self._in_band.inject(hit, ttl_s)
            return
        await helper.go(ttl_s or ONCE_S)

    async def end(self, hit: Hit) -> None:
        """See `Place`."""
        if hit.id in self._covered:
            return
        helper = self._helpers.get(hit.id)
        if helper is None:
            await self._in_band.clear(hit)
            return
        await helper.end()

    def let_go(self) -> None:
        """What helpers hold ends."""
        for helper in self._helpers.values():
            helper.let_go()

    def _order(self, hit: Hit) -> Mapping[str, Any] | None:
        """What a keeper is to do; None for a fault that acts in-band."""
        parameters, names = hit.fault.parameters, list(self._names_of(hit))
        match hit.fault.action:
            case "kill" if parameters.how == "evict":
                raise NotSupported(f"{hit.text}: eviction is for clusters")
            case "kill" | "kill-shard":
                return {"deed": "kill", "run_dir": str(self._run_dir), "names": names}
            case "drain":
                return {"deed": "drain", "run_dir": str(self._run_dir), "name": hit.target.name}
            case "cpu-hog":
                return {"deed": "hog", "workers": parameters.workers, "load": parameters.load}
            case "pause" if parameters.how == "process":
                return {"deed": "stop", "processes": [self._process(name) for name in names]}
        return None

    def _process(self, name: str) -> tuple[int, int]:
        pid = self._running()[name].pid
        ticks = start_ticks(pid) if pid is not None else None
        if pid is None or ticks is None:
            raise Unavailable(f"{name} does not run")
        return pid, ticks
