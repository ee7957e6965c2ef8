"""`proa up` on this machine: its processes are the targets, run.json and the frontend name them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proa.api.v1 import frontend_pb2
from proa.client.reports import read_report
from proa.errors import NotSupported, ProgramRefused, Unavailable
from proa.local.run_file import Run, RunningProcess, read_run
from proa.local.session import start_ticks
from proa.rpc import FRONTEND, Channels
from proa.worker.manifest import PACKAGE_FILE, Package
from proa_chaos.blast import Pool, worker_pool
from proa_chaos.experiment import PROA
from proa_chaos.inband import InBand, acting, check
from proa_chaos.local.helper import Helper
from proa_chaos.local.keeper import now_s
from proa_chaos.plan import Hit
from proa_chaos.selection import MODEL, PARITY_ROLE, ROLE, Target
from proa_chaos.workers import in_quarantine, not_up, protection_of

MESSAGE_BYTES_MAX = 64 << 20
CALL_S_MAX = 5.0
# A kill happens once; its helper needs a moment of life to do it in.
ONCE_S = 0.01
_READY = {"up", "ready"}


class LocalBackend:
    """The `proa up` that runs in `run_dir`. `faults_until`: told how long faults may act, in
    seconds since boot. Errors: Unavailable when nothing runs there."""

    name = "local"

    def __init__(
        self,
        run_dir: Path,
        *,
        prefix: str,
        seed: int,
        faults_until: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        self._channels = Channels(message_bytes_max=MESSAGE_BYTES_MAX)
        self._in_band = InBand(self._channels, prefix, seed)
        self._faults_until = faults_until
        self._until_s = 0.0
        self._helpers: dict[str, Helper] = {}
        self._covered: set[str] = set()
        self.address = self._run().address
        self._frontend = Target("frontend", "frontend", self.address, labels={ROLE: FRONTEND})

    def models(self) -> tuple[str, ...]:
        """The models that are served."""
        return self._run().models

    async def targets(self, model: str) -> list[Target]:
        status = await self._status(model)
        processes = self._processes()
        found = []
        for worker in status.workers:
            process = processes.get(worker.name)
            role = PARITY_ROLE if list(worker.roles) == ["parity"] else "worker"
            if process is not None:
                target = _target(process, role, worker.domain, {MODEL: model})
                found.append(replace(target, protection=protection_of(status)))
        others = [p for name, p in processes.items() if not name.startswith("worker-")]
        return found + [_target(process, process.name, process.name, {}) for process in others]

    async def pools(self, model: str) -> list[Pool]:
        targets = await self.targets(model)
        status = await self._status(model)
        ready = {worker.name for worker in status.workers if worker.state == "up"}
        ready |= {p.name for p in self._processes().values() if p.state in _READY}
        k, r = self._code(model)
        workers = tuple(t for t in targets if t.labels.get(MODEL) == model)
        down = {w.name for w in status.workers if w.state != "up"}
        pools = [worker_pool(model, workers, frozenset(ready - down), k, r)]
        for role, least in (("encoder", 0), ("decoder", 0), ("frontend", 1)):
            members = tuple(t for t in targets if t.role == role)
            if members:
                pools.append(Pool(f"the {role}s", members, frozenset(ready), max(r, 1), least))
        return pools

    async def waiting_for(self, model: str) -> list[str]:
        found = [
            f"{p.name} is {p.state}" for p in self._processes().values() if p.state not in _READY
        ]
        try:
            return found + not_up(await self._status(model))
        except Unavailable as exc:
            return [*found, str(exc)]

    async def quarantined(self, model: str) -> list[str]:
        return in_quarantine(await self._status(model))

    async def prepare(self, hits: Sequence[Hit]) -> None:
        orders: dict[str, Mapping[str, Any]] = {}
        hogs: set[tuple[str, float]] = set()
        for hit in hits:
            if hit.fault.backend != PROA:
                raise NotSupported(f"{hit.text}: backend {hit.fault.backend} is for clusters")
            order = self._order(hit)
            if order is None:
                check(hit)
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
        if hit.id in self._covered:
            return
        helper = self._helpers.get(hit.id)
        if helper is None:
            await self._in_band.clear(hit)
            return
        await helper.end()

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        await self._in_band.announce([self._frontend], hit, ttl_s)

    async def close(self) -> None:
        for helper in self._helpers.values():
            helper.let_go()
        await self._channels.close()

    def _order(self, hit: Hit) -> Mapping[str, Any] | None:
        """What a keeper is to do; None for a fault that acts in-band."""
        parameters = hit.fault.parameters
        match hit.fault.action:
            case "kill" if parameters.how == "evict":
                raise NotSupported(f"{hit.text}: eviction is for clusters")
            case "kill":
                return {"deed": "kill", "run_dir": str(self._run_dir), "name": hit.target.name}
            case "drain":
                return {"deed": "drain", "run_dir": str(self._run_dir), "name": hit.target.name}
            case "cpu-hog":
                return {"deed": "hog", "workers": parameters.workers, "load": parameters.load}
            case "pause" if parameters.how == "process":
                pid = self._processes()[hit.target.name].pid
                ticks = start_ticks(pid) if pid is not None else None
                if ticks is None:
                    raise Unavailable(f"{hit.target.name} does not run")
                return {"deed": "stop", "pid": pid, "ticks": ticks}
        return None

    def _run(self) -> Run:
        return read_run(self._run_dir)

    def _processes(self) -> dict[str, RunningProcess]:
        return {process.name: process for process in self._run().processes}

    def _code(self, model: str) -> tuple[int, int]:
        """k and r of the package that `proa up` made; one to spare where there is no code."""
        path = self._run_dir / "packages" / model / model / "1" / PACKAGE_FILE
        try:
            code = Package.read(path).code
            return int(code["k"]), int(code["r"])
        except (ProgramRefused, KeyError, TypeError, ValueError):
            return 1, 1

    async def _status(self, model: str) -> frontend_pb2.ModelStatus:
        channel = self._channels(self.address, FRONTEND)
        for found in (await read_report(channel, timeout_s=CALL_S_MAX)).models:
            if found.name == model:
                return found
        raise Unavailable(f"the frontend reports nothing of model {model!r}")


def run_id() -> str:
    """A name for this run's faults; two runs of one machine have different ones."""
    return f"chaos-{os.getpid()}"


def _target(process: RunningProcess, role: str, domain: str, labels: Mapping[str, str]) -> Target:
    return Target(
        name=process.name,
        domain=domain,
        address=process.address,
        labels={ROLE: role, **labels, "app.kubernetes.io/component": role},
    )
