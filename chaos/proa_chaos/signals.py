"""A run that a signal ends: it rolls back first."""

from __future__ import annotations

import asyncio
import signal

from proa.errors import RequestCancelled
from proa_chaos.result import Result
from proa_chaos.runner import Runner

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def until_signal(runner: Runner) -> Result:
    """Run; a signal cancels it, once: a second one must not stop the roll-back."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(runner.run())
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError as exc:
        raise RequestCancelled("told to stop before anything was done") from exc
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
