"""Waiting with a limit."""

from __future__ import annotations

import asyncio


async def set_within(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return once `event` is set, or after `timeout_s` seconds (None: no limit).

    Not wait_for: that of Python 3.11 can swallow a cancellation that comes as the event is set.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
