"""The running system of the serving demo: real workers, coders and frontend, and levers on them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tritonclient.grpc import service_pb2

from proa import wire
from proa.api.v1 import faults_pb2, frontend_pb2
from proa.client.reports import read_report
from proa.demo.scenario import SLOW_MS, WORKERS, Contender, Episode
from proa.errors import Unavailable
from proa.local.embedded import Running
from proa.rpc import Channels, peer_errors

FAULT_MODEL = "proa_faults"
CALL_S_MAX = 5.0
JOIN_S_MAX = 60.0
JOIN_POLL_S = 0.1


@dataclass(frozen=True)
class Work:
    """Queries sent and redundant computations done, since the frontend started."""

    sent: int
    redundant: int


class Stage:
    """What the demo does to the system it measures."""

    def __init__(self, running: Running, out: Path) -> None:
        self._running = running
        self._out = out
        self._channels = Channels(message_bytes_max=64 << 20)
        specs = {spec.name: spec for spec in running.topology.processes}
        self._workers = [f"127.0.0.1:{specs[f'worker-{i}'].port}" for i in range(WORKERS)]

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self._running.topology.address

    async def close(self) -> None:
        """Close all connections."""
        await self._channels.close()

    async def use(self, contender: Contender, base: Path) -> None:
        """Restart the frontend with the policy of `contender`; wait until all workers serve."""
        spec = write_policy_spec(base, contender, self._out / "policies")
        members = []
        for i, address in enumerate(self._workers):
            role = ""
            if contender.dedicated:
                role = "#parity" if i >= WORKERS - contender.dedicated else "#deployed"
            members.append(f"{address}@worker-{i}{role}")
        env = {
            "PROA_FRONTEND_SPECS": str(spec),
            "PROA_FRONTEND_WORKERS": f"digits={','.join(members)}",
        }
        await self._running.supervisor.restart_frontend(env)
        await self.all_serving()

    async def all_serving(self) -> None:
        """Wait until every worker has passed its canary. Errors: Unavailable, naming the others."""
        last = "no report"
        try:
            async with asyncio.timeout(JOIN_S_MAX):
                while True:
                    workers = (await self._report()).workers
                    waiting = [w for w in workers if w.state != "up"]
                    if len(workers) == WORKERS and not waiting:
                        return
                    last = "; ".join(f"{w.name} is {w.state}" for w in waiting)
                    await asyncio.sleep(JOIN_POLL_S)
        except TimeoutError as exc:
            raise Unavailable(f"after {JOIN_S_MAX:.0f} s: {last}") from exc

    async def work(self) -> Work:
        """The work done so far."""
        report = await self._report()
        return Work(report.sent, report.redundant_sent)

    async def _report(self) -> frontend_pb2.ModelStatus:
        report = await read_report(self._channels(self.address), timeout_s=CALL_S_MAX)
        return report.models[0]

    async def make_slow(self, episode: Episode) -> None:
        """Make a worker slow for the length of the episode; it forgets by itself."""
        fault = faults_pb2.Fault(
            id="demo-slow",
            kind=faults_pb2.FaultKind.DELAY,
            ttl_ms=max(1, round((episode.end_s - episode.start_s) * 1000)),
            delay_ms=round(SLOW_MS),
        )
        request = faults_pb2.FaultRequest(inject=faults_pb2.InjectRequest(fault=fault))
        data = np.frombuffer(request.SerializeToString(), np.uint8)
        message = wire.write_request(FAULT_MODEL, {"request": data}, outputs=["reply"])
        call = self._channels(self._workers[episode.worker]).unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        async with peer_errors(f"worker-{episode.worker}"):
            await call(message, timeout=CALL_S_MAX)

    def kill(self, worker: int) -> None:
        """SIGKILL a worker, and hold its restart back."""
        self._running.supervisor.hold(f"worker-{worker}")
        self._running.supervisor.kill(f"worker-{worker}")

    def restart(self, worker: int) -> None:
        """Let a killed worker come back."""
        self._running.supervisor.release(f"worker-{worker}")


def write_policy_spec(base: Path, contender: Contender, folder: Path) -> Path:
    """The spec at `base` with the redundancy of `contender`, in `folder`."""
    document: dict[str, Any] = yaml.safe_load(base.read_text(encoding="utf-8"))
    spec = document["spec"]
    spec["model"]["program"] = _moved(base, spec["model"]["program"], folder)
    redundancy = dict(spec["redundancy"]) | dict(contender.redundancy)
    redundancy["parity"] = {
        k: [_moved_program(base, row, folder) for row in rows]
        for k, rows in redundancy.get("parity", {}).items()
    }
    spec["redundancy"] = redundancy
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{contender.name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path.resolve()


def _moved(base: Path, program: str, folder: Path) -> str:
    """A program's path, as seen from `folder`."""
    return os.path.relpath((base.parent / program).resolve(), folder.resolve())


def _moved_program(base: Path, row: Mapping[str, str] | str, folder: Path) -> Any:
    if isinstance(row, str):
        return _moved(base, row, folder)
    return {**row, "program": _moved(base, row["program"], folder)}
