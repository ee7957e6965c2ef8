"""`proa up` on this machine: its processes are the targets, run.json and the frontend name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from proa.api.v1 import frontend_pb2
from proa.client.reports import read_report
from proa.errors import ProgramRefused, Unavailable
from proa.local.run_file import Run, RunningProcess, read_run
from proa.rpc import FRONTEND, Channels
from proa.worker.manifest import PACKAGE_FILE, Package
from proa_chaos.blast import Pool, worker_pool
from proa_chaos.inband import InBand
from proa_chaos.local.faults import LocalFaults
from proa_chaos.plan import Hit
from proa_chaos.selection import MODEL, PARITY_ROLE, ROLE, Target
from proa_chaos.workers import in_quarantine, not_up, protection_of

MESSAGE_BYTES_MAX = 64 << 20
CALL_S_MAX = 5.0
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
        self._faults = LocalFaults(
            run_dir, self._in_band, self._processes, lambda hit: [hit.target.name], faults_until
        )
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
        await self._faults.prepare(hits)

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        await self._faults.inject(hit, ttl_s)

    async def end(self, hit: Hit) -> None:
        await self._faults.end(hit)

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        await self._in_band.announce([self._frontend], hit, ttl_s)

    async def close(self) -> None:
        self._faults.let_go()
        await self._channels.close()

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
