"""The one way to wait in a test: until a condition holds, with a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def eventually(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait until `condition()` is true; fail after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not true within {timeout_s} s: {condition}"
        await asyncio.sleep(0.02)


def eventually_sync(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """The same for synchronous tests."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not true within {timeout_s} s: {condition}"
        time.sleep(0.02)
