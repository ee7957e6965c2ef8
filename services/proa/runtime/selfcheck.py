"""Readiness from the data path: a root task that keeps trying what requests will ask for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proa.errors import ProaError, Unavailable

log = logging.getLogger(__name__)

CONNECT_S_MAX = 1.0


async def keep_checking(
    check: Callable[[], Awaitable[None]], ready: asyncio.Event, *, interval_s: float = 1.0
) -> None:
    """Set `ready` while `check` passes, clear it while it raises a ProaError. Never returns."""
    reason = ""
    while True:
        try:
            await check()
        except ProaError as exc:
            ready.clear()
            if str(exc) != reason:
                reason = str(exc)
                log.warning("self-check failed: %s", reason)
        else:
            reason = ""
            ready.set()
        await asyncio.sleep(interval_s)


async def check_port(host: str, port: int) -> None:
    """The port accepts a connection. Errors: Unavailable."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(target, port)
    except OSError as exc:  # TimeoutError is one
        raise Unavailable(f"port {port} does not accept connections: {exc}") from exc
    writer.close()
