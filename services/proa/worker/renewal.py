"""Restarts of Triton for a renewed certificate, which it reads at its start only: one worker at a
time, so that a pool never restarts as a whole."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from proa.cluster.api import load_api
from proa.cluster.lease import Lease
from proa.errors import ProaError
from proa.runtime.tls import TlsFiles

log = logging.getLogger(__name__)

LEASE_S_MAX = 3600.0  # for all others before us

# Makes the context in which this worker, and no other of its pool, may restart.
Turn = Callable[[], AbstractAsyncContextManager[object]]


class Renewed(Exception):
    """It is this worker's turn to restart Triton."""


class Renewal:
    """Waits for a new certificate, then for this worker's turn, which lasts until `done`.

    turn: what says whose turn it is; None, or one that fails: a delay of up to `spread_s`, another
    for each `pod`. A certificate is renewed long before it ends: waiting does no harm, but never
    restarting would.
    """

    def __init__(
        self, tls: TlsFiles | None, turn: Turn | None, *, spread_s: float, pod: str
    ) -> None:
        self._tls = tls
        self._turn = turn
        self._spread_s = spread_s
        self._dice = random.Random(pod)  # noqa: S311  # spreads load, keeps no secret
        self._running = tls.version if tls else 0
        self._holder: asyncio.Task[None] | None = None
        self._got = asyncio.Event()
        self._over = asyncio.Event()

    async def follow(self) -> None:
        """Watch the certificate. Never returns."""
        if self._tls is None:
            await asyncio.Event().wait()
        else:
            await self._tls.watch()

    def starting(self) -> None:
        """Triton is about to read the certificate of now."""
        self._running = self._tls.version if self._tls else 0

    async def due(self) -> None:
        """Never returns; raises Renewed when Triton is to be restarted."""
        if self._tls is None:
            await asyncio.Event().wait()
            return
        await self._tls.renewed(self._running)
        log.info("certificate renewed, waiting for our turn to restart Triton")
        await self._wait_turn()
        raise Renewed

    async def done(self) -> None:
        """Triton answers again, or the worker ends: the next one may go."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        if self._got.is_set():
            self._over.set()
        else:
            holder.cancel()
        await asyncio.wait([holder])

    async def _wait_turn(self) -> None:
        if self._turn is not None and await self._has_turn(self._turn):
            return
        await asyncio.sleep(self._dice.uniform(0.0, self._spread_s))

    async def _has_turn(self, turn: Turn) -> bool:
        """Wait for it; False when it cannot be had."""
        self._got, self._over = asyncio.Event(), asyncio.Event()
        # A task of its own: a turn ends where it began, and it outlives this coroutine.
        self._holder = asyncio.create_task(self._hold(turn, self._got, self._over))
        waiter = asyncio.create_task(self._got.wait())
        try:
            await asyncio.wait((self._holder, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        return self._got.is_set()

    @staticmethod
    async def _hold(turn: Turn, got: asyncio.Event, over: asyncio.Event) -> None:
        try:
            async with turn():
                got.set()
                await over.wait()
        except ProaError as exc:
            log.warning("no turn to restart Triton in, it restarts after a delay: %s", exc)
        except Exception:
            log.exception("unexpected error while waiting for a turn to restart Triton")


def lease_turn(name: str, environ: Mapping[str, str], pod: str) -> Turn:
    """Turns by the Lease `name` of this namespace. Errors: EnvironmentLacks (no API access)."""
    lease = Lease(
        load_api(environ),
        name=name,
        holder=pod,
        on_error=lambda text: log.warning("lease %s: %s", name, text),
    )
    return lambda: lease.held(LEASE_S_MAX)
