"""The life of a process: root tasks that never return, ready last, unready first, drain, close."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import grpc.aio
import uvloop
from grpc_health.v1 import health, health_pb2

from proa.errors import ProaError, SettingsError, SpecError
from proa.runtime import log as logs
from proa.runtime.admin import Admin
from proa.runtime.server import HealthServicer
from proa.runtime.waiting import set_within

log = logging.getLogger(__name__)

BEAT_S = 1.0
OK, FAILED, USAGE = 0, 1, 2


class Unstarted(Protocol):
    """What `serve` asks of a coroutine it never came to run."""

    def close(self) -> None: ...


def run(main: Callable[[], Awaitable[None]], *, service: str = "proa") -> int:
    """Run `main` on uvloop until it ends or SIGTERM or SIGINT cancels it; returns the exit code.

    0: stopped by a signal, or `main` returned; 1: an error; 2: wrong settings or spec. Errors are
    logged: ours as one line, others with a traceback. PROA_LOG_LEVEL sets the level (INFO),
    PROA_LOG_FORMAT the form (text, json).
    """
    try:
        logs.setup_from(service, os.environ)
    except SettingsError as exc:
        return _failed(exc, USAGE)
    # What is imported by now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_guarded(main))


async def _guarded(main: Callable[[], Awaitable[None]]) -> int:
    stopped: list[signal.Signals] = []
    task = asyncio.ensure_future(main())

    def stop(number: signal.Signals) -> None:
        # Another signal cuts short what the one before began: see `serve`.
        log.info("stopping signal=%s", number.name)
        stopped.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        return OK if stopped else FAILED
    except (SettingsError, SpecError) as exc:
        return _failed(exc, USAGE)
    except ProaError as exc:
        return _failed(exc, FAILED)
    except Exception:
        log.exception("unexpected error")
        return FAILED
    return OK


def _failed(error: ProaError, code: int) -> int:
    log.error("%s", error)
    return code


async def serve(
    server: grpc.aio.Server,
    *,
    health: HealthServicer,
    admin: Admin,
    roots: Mapping[str, Awaitable[None]],
    ready: asyncio.Event,
    grace_s: float,
    drain_s: float = 0.0,
    on_drain: Callable[[], None] = lambda: None,
) -> None:
    """Serve until cancelled. `server` is bound already and has `health`.

    Starts the admin port, the roots and the server. Health and /readyz follow `ready`: at once when
    it is set, within a second when it is cleared. A root that returns or raises ends `serve` with a
    ProaError that names it. On the way out, whatever the reason: NOT_SERVING and unready first;
    if cancelled, `drain_s` more seconds of service, as those who send us work need time to hear of
    it (cancelled again: no longer); then `on_drain` (end the streams that would not end by
    themselves), `server.stop(grace_s)` (calls under way have `grace_s` seconds to end); then the
    roots are cancelled and the admin port closed.
    """
    tasks: dict[str, asyncio.Task[None]] = {}
    leave_s = 0.0
    try:
        admin.start()
        tasks["heartbeat"] = asyncio.create_task(_heartbeat(admin))
        tasks["announcements"] = asyncio.create_task(_announcements(admin, health, ready))
        for name, root in roots.items():
            tasks[name] = asyncio.create_task(_awaited(root), name=name)
        await server.start()
        log.info("serving admin_port=%d", admin.port)
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        raise _end_of_root(tasks)
    except asyncio.CancelledError:
        leave_s = drain_s
        raise
    finally:
        _close_unstarted(roots, tasks)
        if "announcements" in tasks:
            tasks["announcements"].cancel()  # what becomes ready now is ready no more
        try:
            await _take_leave(health, admin, leave_s)
        finally:
            await _drain(server, admin, tasks, grace_s, on_drain)


async def _take_leave(health: HealthServicer, admin: Admin, leave_s: float) -> None:
    """Unready and NOT_SERVING for good, and `leave_s` seconds for everybody to hear of it."""
    admin.set_ready(False, "draining")
    await health.enter_graceful_shutdown()
    try:
        await asyncio.sleep(leave_s)
    except asyncio.CancelledError:
        log.info("draining cut short")


async def _drain(
    server: grpc.aio.Server,
    admin: Admin,
    tasks: Mapping[str, asyncio.Task[None]],
    grace_s: float,
    on_drain: Callable[[], None],
) -> None:
    try:
        on_drain()
        await server.stop(grace_s)
    finally:
        # The heartbeat ends only here: a process that drains is alive.
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        admin.stop()


async def _awaited(root: Awaitable[None]) -> None:
    await root


async def _heartbeat(admin: Admin) -> None:
    while True:
        admin.beat()
        await asyncio.sleep(BEAT_S)


async def _announcements(admin: Admin, servicer: HealthServicer, ready: asyncio.Event) -> None:
    """Tells health and /readyz of every change of `ready`."""
    told = False
    while True:
        if ready.is_set() != told:
            told = ready.is_set()
            await _announce(told, admin, servicer)
        await set_within(ready, BEAT_S) if not told else await asyncio.sleep(BEAT_S)


async def _announce(ready: bool, admin: Admin, servicer: HealthServicer) -> None:
    log.info("ready" if ready else "not ready")
    admin.set_ready(ready, "the data path does not answer")
    status = health_pb2.HealthCheckResponse
    await servicer.set(health.OVERALL_HEALTH, status.SERVING if ready else status.NOT_SERVING)


def _end_of_root(tasks: Mapping[str, asyncio.Task[None]]) -> ProaError:
    """The error for the first root that ended; logs the traceback of an unexpected one."""
    name, task = next((name, task) for name, task in tasks.items() if task.done())
    if task.cancelled():
        return ProaError(f"root task {name!r} was cancelled")
    cause = task.exception()
    if cause is None:
        return ProaError(f"root task {name!r} returned; it must never")
    if not isinstance(cause, ProaError):
        log.error("root task %r failed", name, exc_info=cause)
    found = ProaError(f"root task {name!r} failed: {cause}")
    found.__cause__ = cause
    return found


def _close_unstarted(
    roots: Mapping[str, Awaitable[None]], tasks: Mapping[str, asyncio.Task[None]]
) -> None:
    """Without this, Python warns of coroutines that were never awaited."""
    for name, root in roots.items():
        if name not in tasks and asyncio.iscoroutine(root):
            root.close()
