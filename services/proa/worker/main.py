"""The worker process: runs Triton as its child and answers for it.

Ready after every program has answered a canary; ends with an error, Triton's process group first,
when tritonserver dies or the canary fails too often in a row. Its supervisor starts a new one.
No torch in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from proa.errors import EnvironmentLacks, Unavailable
from proa.runtime.admin import Admin
from proa.runtime.serve import run
from proa.runtime.settings import from_env
from proa.worker import launch
from proa.worker.canary import Canary, describe, has_faults, probes_of
from proa.worker.faults import FILE_NAME, FaultRecord
from proa.worker.settings import ANY_HOST, WorkerSettings
from proa.worker.triton import Triton

log = logging.getLogger(__name__)

LOCK_NAME = "lock"
BEAT_S = 1.0
AGAIN_S = 0.5  # between a failed canary and the next


class CanaryMetrics:
    """What the canary saw."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "proa_worker_canary_seconds", "Canary inferences that were answered", registry=registry
        )
        self.failures = Counter(
            "proa_worker_canary_failures_total", "Canary inferences that failed", registry=registry
        )


async def serve(settings: WorkerSettings, environ: Mapping[str, str]) -> None:
    """Run the worker until cancelled. Raises a ProaError when it cannot go on."""
    repository = settings.repository
    probes = probes_of(repository)
    registry = CollectorRegistry()
    metrics = CanaryMetrics(registry)
    admin = Admin(settings.admin_port, registry, settings.host)
    with _scratch(settings.scratch) as scratch:
        if has_faults(repository):
            _clear_faults(scratch)
        ports = launch.Ports(settings.port, settings.http_port, settings.metrics_port)
        own = {"PROA_WORKER_SCRATCH": str(scratch), "PROA_WORKER_THREADS": str(settings.threads)}
        own["PROA_WORKER_SERVICE_MS"] = str(settings.service_ms)
        prepared = launch.prepare(
            repository, scratch, ports, {**environ, **own}, host=settings.host
        )
        admin.start()
        try:
            log.info("starting Triton port=%d programs=%s", settings.port, describe(probes))
            host = "127.0.0.1" if settings.host == ANY_HOST else settings.host
            address = f"{host}:{settings.port}"
            async with (
                _triton(prepared, admin, scratch) as triton,  # first: gRPC dislikes forks
                Canary(address, probes, timeout_s=settings.canary_timeout_s) as canary,
            ):
                await _first_of(
                    triton.wait(), _watch(settings, canary, admin, metrics), _beat(admin)
                )
        finally:
            admin.stop()


@asynccontextmanager
async def _triton(prepared: launch.Launch, admin: Admin, scratch: Path) -> AsyncIterator[Triton]:
    """Triton for the duration: ended gracefully when we are told to stop, at once on an error."""
    triton = await Triton.start(prepared)
    graceful = False
    try:
        yield triton
    except asyncio.CancelledError:
        graceful = True
        raise
    finally:
        admin.set_ready(False, "stopping")
        if (scratch / FILE_NAME).exists():
            _clear_faults(scratch)  # a paused computation would hold up the end
        await triton.stop(graceful=graceful)


async def _watch(
    settings: WorkerSettings, canary: Canary, admin: Admin, metrics: CanaryMetrics
) -> None:
    """Ready when all programs answer; from then on looked at, for ever."""
    started = time.monotonic()
    try:
        await asyncio.wait_for(canary.wait_all_answer(), settings.start_s_max)
    except TimeoutError as exc:
        raise Unavailable(
            f"not every program answered within PROA_WORKER_START_S_MAX={settings.start_s_max:g} s"
        ) from exc
    log.info("ready seconds=%.1f", time.monotonic() - started)
    admin.set_ready(True, "every program answers")
    failures = 0
    while failures < settings.canary_failures:
        await asyncio.sleep(min(settings.canary_s, AGAIN_S) if failures else settings.canary_s)
        began = time.monotonic()
        try:
            probed = await canary.check()
        except Unavailable as exc:
            failures += 1
            metrics.failures.inc()
            admin.set_ready(False, f"canary: {exc}")
            log.warning("canary failed in_a_row=%d error=%s", failures, exc)
            last = exc
        else:
            if probed:
                metrics.seconds.observe(time.monotonic() - began)
            if failures:
                admin.set_ready(True, "every program answers")
            failures = 0
    raise Unavailable(f"the canary failed {failures} times in a row, last: {last}")


async def _beat(admin: Admin) -> None:
    while True:
        admin.beat()
        await asyncio.sleep(BEAT_S)


async def _first_of(*roots: Coroutine[Any, Any, None]) -> None:
    """Run root tasks, none of which returns: the first error ends them all."""
    tasks = [asyncio.create_task(root) for root in roots]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise AssertionError("a root task returned")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _scratch(given: Path | None) -> Iterator[Path]:
    """The scratch folder, for this worker alone; emptied of what is ours at the end."""
    scratch = given or Path(tempfile.mkdtemp(prefix="proa-worker-"))
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = os.open(scratch / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise EnvironmentLacks(f"PROA_WORKER_SCRATCH={scratch}: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(lock)
        raise EnvironmentLacks(
            f"PROA_WORKER_SCRATCH={scratch} is in use by another worker; give each its own"
        ) from exc
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch / "backends", ignore_errors=True)
        for name in (FILE_NAME, LOCK_NAME):
            (scratch / name).unlink(missing_ok=True)
        os.close(lock)
        if not given:
            with contextlib.suppress(OSError):
                scratch.rmdir()


def _clear_faults(scratch: Path) -> None:
    """An empty fault record: faults end with the worker they were injected into."""
    record = FaultRecord(scratch)
    record.clear()
    record.close()


def main() -> int:
    """Entry point of `python -m proa.worker`."""

    async def worker() -> None:
        await serve(from_env(WorkerSettings, os.environ), os.environ)

    return run(worker, service="worker")


if __name__ == "__main__":
    sys.exit(main())
