"""What tracing costs: CPU seconds per request with tracing off, at 1 % and of all requests.

Three whole systems run side by side and take turns, so that a slow machine slows all. Their traces
go to a process of its own, whose CPU is not counted. Prints JSON.

    .venv/bin/python benchmarks/telemetry.py out/demo/digits.yaml
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from proa import spec as specs
from proa.local.embedded import Running, embedded
from proa.local.session import Family
from proa.local.topology import Options

OFF, SOME, ALL = SAMPLES = ("off", "0.01", "1")
ROUNDS, REQUESTS, CLIENTS, WORKERS = 20, 100, 4, 3
WARM_UP = 100
SETTLE_S = 3.0  # exporters wait a second at most
SINK = "--sink"
PARAMETERS = {"proa.policy": "parity"}  # so that the encoder works as well
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class System:
    """One running system. `cost_s`: CPU seconds by service since `start`."""

    def __init__(self, running: Running, name: str, query: triton.InferInput) -> None:
        self._name = name
        self._query = query
        self._client = triton.InferenceServerClient(running.topology.address)
        self._families = {
            one.name.partition("-")[0] + f".{i}": Family(one.pid)
            for i, one in enumerate(running.supervisor.status())
            if one.pid is not None
        }
        self._before: dict[str, float] = {}
        self.turns_s: dict[str, float] = {}

    async def ask(self, requests: int) -> None:
        """So many requests, a few at a time."""
        left = iter(range(requests))

        async def client() -> None:
            for _ in left:
                await self._client.infer(self._name, [self._query], parameters=PARAMETERS)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def turn(self) -> None:
        """Requests whose cost is noted in `turns_s`, nearly without that of being idle."""
        before = self._used()
        await self.ask(REQUESTS)
        for service, used_s in self._used().items():
            took_s = used_s - before[service]
            self.turns_s[service] = self.turns_s.get(service, 0.0) + took_s

    def start(self) -> None:
        self._before = self._used()

    @property
    def cost_s(self) -> dict[str, float]:
        return {service: used - self._before[service] for service, used in self._used().items()}

    async def close(self) -> None:
        await self._client.close()

    def _used(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, family in self._families.items():
            service = name.partition(".")[0]
            used_s = sum(map(_cpu_s, (member.pid for member in family.members())))
            found[service] = found.get(service, 0.0) + used_s
        return found


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that have ended; 0 if it is gone."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return sum(map(int, stat.rpartition(")")[2].split()[11:15])) * TICK_S
    return 0.0


@contextlib.contextmanager
def environment(sample: str, endpoint: str) -> Iterator[None]:
    """Of the processes that are started inside."""
    values = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "PROA_TRACE_SAMPLE": sample}
    before = dict(os.environ)
    os.environ.update({} if sample == OFF else values)
    os.environ.update({"PROA_FRONTEND_REQUEST_LOG": "none"})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.asynccontextmanager
async def system(path: Path, folder: Path, sample: str, endpoint: str) -> AsyncIterator[System]:
    """A system whose processes are all ready."""
    spec = specs.load(path)
    tensor = spec.model.inputs[0]
    data = np.random.default_rng(0).random((1, *tensor.shape), dtype=np.float32)
    query = triton.InferInput(tensor.name, data.shape, tensor.dtype)
    query.set_data_from_numpy(data)
    options = Options(run_dir=folder / sample, port=0, admin_port=0, workers=WORKERS)
    with environment(sample, endpoint):
        running = embedded([path], options)
        found = await running.__aenter__()
        try:
            await found.supervisor.ready()
        except BaseException:
            await running.__aexit__(*sys.exc_info())
            raise
    made = System(found, spec.name, query)
    try:
        yield made
    finally:
        await made.close()
        await running.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """A process that takes traces and forgets them; its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, SINK, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def measure(path: Path) -> dict[str, Any]:
    """CPU milliseconds per request by service, and by how much tracing adds to them."""
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(sink())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        systems = {
            sample: await stack.enter_async_context(system(path, folder, sample, endpoint))
            for sample in SAMPLES
        }
        for one in systems.values():
            await one.ask(WARM_UP)
        await asyncio.sleep(SETTLE_S)
        for one in systems.values():
            one.start()
        for turn in range(ROUNDS):
            # Nobody always comes after the same one.
            for i in range(len(SAMPLES)):
                await systems[SAMPLES[(i + turn) % len(SAMPLES)]].turn()
        await asyncio.sleep(SETTLE_S)
        costs = {sample: one.cost_s for sample, one in systems.items()}
        usual = systems[OFF].turns_s
    report = _report(costs, usual)
    return {**report, "requests": ROUNDS * REQUESTS, "took_s": round(time.monotonic() - started)}


def _report(costs: dict[str, dict[str, float]], usual: dict[str, float]) -> dict[str, Any]:
    """The work per request is what the turns of the system without traces took. All systems are
    idle for the same time, so what another one used more over all the time is its tracing,
    exports included."""
    count = ROUNDS * REQUESTS
    for by_service in (*costs.values(), usual):
        coders = by_service.pop("encoder", 0.0) + by_service.pop("decoder", 0.0)
        by_service["coders"] = coders
        by_service["all"] = sum(by_service.values())
    report: dict[str, Any] = {}
    for service, work_s in usual.items():
        added = {sample: costs[sample][service] - costs[OFF][service] for sample in (SOME, ALL)}
        report[service] = {
            "ms_per_request": round(1e3 * work_s / count, 4),
            **{f"added_ms_{s}": round(1e3 * more_s / count, 4) for s, more_s in added.items()},
            **{f"ratio_{s}": round(1.0 + more_s / work_s, 3) for s, more_s in added.items()},
        }
    return report


class _Forgetful(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def _serve_sink() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forgetful)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == SINK:
        _serve_sink()
    else:
        print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))
