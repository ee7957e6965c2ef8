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
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from proa.errors import EnvironmentLacks, Unavailable
from proa.rpc import WORKER
from proa.runtime.admin import Admin
from proa.runtime.serve import run
from proa.runtime.settings import from_env
from proa.runtime.tls import TlsFiles, export_expiry, open_tls
from proa.worker import launch
from proa.worker.canary import Canary, Probe, describe, has_faults, has_foreign, probes_of
from proa.worker.faults import FILE_NAME, FaultRecord
from proa.worker.renewal import Renewal, Renewed, lease_turn
from proa.worker.settings import ANY_HOST, WorkerSettings
from proa.worker.tracing import OFF, Export, export_of
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
    tls = open_tls(settings.tls_dir, "PROA_WORKER_TLS_DIR", WORKER)
    export = export_of(settings.trace_url, environ)
    registry = CollectorRegistry()
    export_expiry(registry, {"services": tls})
    metrics = CanaryMetrics(registry)
    admin = Admin(settings.admin_port, registry, settings.host)
    with _scratch(settings.scratch) as scratch:
        if has_faults(repository):
            _clear_faults(scratch)
        own = {"PROA_WORKER_SCRATCH": str(scratch), "PROA_WORKER_THREADS": str(settings.threads)}
        own["PROA_WORKER_SERVICE_MS"] = str(settings.service_ms)
        own |= export.environment() if export else OFF
        renewal = _renewal(settings, environ, tls)
        admin.start()
        try:
            log.info("starting Triton port=%d programs=%s", settings.port, describe(probes))
            await _first_of(
                _lives(
                    _Life(
                        settings, {**environ, **own}, scratch, probes, admin, metrics, tls, export
                    ),
                    renewal,
                ),
                _beat(admin),
                renewal.follow(),
            )
        finally:
            await renewal.done()
            admin.stop()


@dataclass(frozen=True)
class _Life:
    """What a Triton needs to live; `environ` is its environment."""

    settings: WorkerSettings
    environ: Mapping[str, str]
    scratch: Path
    probes: Sequence[Probe]
    admin: Admin
    metrics: CanaryMetrics
    tls: TlsFiles | None
    export: Export | None


async def _lives(life: _Life, renewal: Renewal) -> None:
    """One Triton; after a renewal of the certificate, the next."""
    while True:
        with contextlib.suppress(Renewed):
            await _live(life, renewal)


async def _live(life: _Life, renewal: Renewal) -> None:
    """Run a Triton. Errors: Renewed, when the next is to begin; ProaError."""
    settings = life.settings
    renewal.starting()
    prepared = launch.prepare(
        settings.repository,
        life.scratch,
        launch.Ports(settings.port, settings.http_port, settings.metrics_port),
        life.environ,
        host=settings.host,
        installed=settings.triton,
        tls=settings.tls_dir,
        foreign=has_foreign(settings.repository),
        more=life.export.options() if life.export else (),
    )
    host = "127.0.0.1" if settings.host == ANY_HOST else settings.host
    canary_tls = life.tls.channel(WORKER) if life.tls else None
    async with (
        _triton(prepared, settings, life.admin, life.scratch) as triton,  # gRPC dislikes forks
        Canary(
            f"{host}:{settings.port}",
            life.probes,
            timeout_s=settings.canary_timeout_s,
            tls=canary_tls,
        ) as canary,
    ):
        await _first_of(triton.wait(), _watch(life, canary, renewal), renewal.due())


@asynccontextmanager
async def _triton(
    prepared: launch.Launch, settings: WorkerSettings, admin: Admin, scratch: Path
) -> AsyncIterator[Triton]:
    """Triton for the duration: ended gracefully when we are told to stop or to make way for the
    next, at once on an error."""
    triton = await Triton.start(prepared)
    graceful = False
    try:
        yield triton
    except (asyncio.CancelledError, Renewed):
        graceful = True
        await _take_leave(triton, admin, settings.drain_s)
        raise
    finally:
        admin.set_ready(False, "stopping")
        if (scratch / FILE_NAME).exists():
            _clear_faults(scratch)  # a paused computation would hold up the end
        await triton.stop(graceful=graceful)


async def _take_leave(triton: Triton, admin: Admin, drain_s: float) -> None:
    """Unready, but Triton serves on: for `drain_s` seconds, until it dies or until we are told to
    stop again."""
    admin.set_ready(False, "draining")
    tasks = [asyncio.create_task(root) for root in (triton.wait(), _beat(admin))]
    try:
        await asyncio.wait(tasks, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        log.info("draining cut short")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(life: _Life, canary: Canary, renewal: Renewal) -> None:
    """Ready when all programs answer; from then on looked at, for ever."""
    settings, admin, metrics = life.settings, life.admin, life.metrics
    started = time.monotonic()
    try:
        await asyncio.wait_for(canary.wait_all_answer(), settings.start_s_max)
    except TimeoutError as exc:
        raise Unavailable(
            f"not every program answered within PROA_WORKER_START_S_MAX={settings.start_s_max:g} s"
        ) from exc
    log.info("ready seconds=%.1f", time.monotonic() - started)
    admin.set_ready(True, "every program answers")
    await renewal.done()
    failures = 0
    while failures < settings.canary_failures:
        await asyncio.sleep(min(settings.canary_s, AGAIN_S) if failures else settings.canary_s)
        began = time.monotonic()
        try:
            if life.tls:
                life.tls.check()
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


def _renewal(settings: WorkerSettings, environ: Mapping[str, str], tls: TlsFiles | None) -> Renewal:
    """Errors: EnvironmentLacks (a Lease, but no access to the API it is in)."""
    pod = socket.gethostname()
    lease = settings.restart_lease
    turn = lease_turn(lease, environ, pod) if tls and lease else None
    return Renewal(tls, turn, spread_s=settings.restart_spread_s, pod=pod)


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
