"""A run that a signal ends, or that may not go on: it rolls back first."""

from __future__ import annotations

import asyncio
import signal

from proa.errors import RequestCancelled, Unavailable
from proa_chaos.result import Result
from proa_chaos.runner import Runner

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def until_signal(
    runner: Runner, *, lost: asyncio.Event | None = None, why: str = ""
) -> Result:
    """Run; a signal cancels it, once: a second one must not stop the roll-back. So does `lost`,
    for the reason `why`.

    Errors: RequestCancelled, or Unavailable with that reason, when nothing was done yet; those of
    `Runner.run`.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(runner.run())

    async def watch(event: asyncio.Event) -> None:
        await event.wait()
        runner.stopped_by = why
        task.cancel()

    watching = asyncio.create_task(watch(lost)) if lost else None
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError as exc:
        if runner.stopped_by:
            raise Unavailable(f"{runner.stopped_by}; nothing was done yet") from exc
        raise RequestCancelled("told to stop before anything was done") from exc
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        if watching is not None:
            watching.cancel()
