"""Whether a process is the coordinator of its store, and where it keeps what it granted.

Embedded: a file with a lock. On Kubernetes: a Lease, and a ConfigMap of the same name. A ConfigMap
rather than a volume: each write names the version that it replaces, so that a coordinator that was
deposed cannot write, and a new one starts on any node without waiting for a disk to be detached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from proa.cluster import Lease, LeaseTimes, load_api
from proa.errors import SettingsError, Unavailable
from proa.store.config_map import ConfigMapState
from proa.store.keeper import StateFile

log = logging.getLogger(__name__)

CONFIG_MAP = "configmap:"
# A coordinator that died is missed after `duration_s`; until then nobody may read or push.
TIMES = LeaseTimes(duration_s=6, renew_s=1.5, poll_s=1.0)
LOOK_S = 0.1
BEAT_S = 1.0


class State(Protocol):
    """A JSON object that outlives the process. Errors: ProaError, OSError."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Kept when it returns. Blocks: nothing may be said before."""


class Tenure:
    """`held`: whether nobody else may be the coordinator now."""

    def __init__(self, held: Callable[[], bool] = lambda: True) -> None:
        self._held = held
        self._why = ""

    def end(self, why: str) -> None:
        """It is over, for ever."""
        self._why = self._why or why

    def check(self) -> None:
        """Errors: Unavailable, once it is over."""
        if not self._held():
            self.end("its Lease was lost")
        if self._why:
            raise Unavailable(f"this is the coordinator no more: {self._why}")

    async def watch(self) -> None:
        """Never returns. Errors: Unavailable, as `check`."""
        while True:
            self.check()
            await asyncio.sleep(LOOK_S)


@contextlib.asynccontextmanager
async def seat(
    state: str, holder: str, environ: Mapping[str, str], waiting: Callable[[], None]
) -> AsyncIterator[tuple[State, Tenure]]:
    """Wait until we are the coordinator. state, holder: PROA_STORE_STATE and _HOLDER; `waiting`
    is called every second meanwhile. Errors: Unavailable (the file is locked), SettingsError,
    EnvironmentLacks, ApiError (a Role is missing)."""
    if not state.startswith(CONFIG_MAP):
        file = StateFile(Path(state))
        try:
            yield file, Tenure()
        finally:
            file.close()
        return
    name = state.removeprefix(CONFIG_MAP)
    if not name or not holder:
        raise SettingsError(f"PROA_STORE_STATE={state!r} needs a name, and PROA_STORE_HOLDER")
    api = load_api(environ)

    def complain(text: str) -> None:
        log.warning("lease %s: %s", name, text)

    lease = Lease(api, name=name, holder=holder, on_error=complain, times=TIMES)
    async with contextlib.AsyncExitStack() as stack:
        beating = asyncio.create_task(_beat(waiting))
        try:
            lost = await stack.enter_async_context(lease.held())
        finally:
            beating.cancel()
        log.info("this is the coordinator now, by the lease %s", name)
        kept = ConfigMapState(api, name)
        stack.callback(kept.close)
        yield kept, Tenure(lambda: lease.unexpired and not lost.is_set())


async def _beat(waiting: Callable[[], None]) -> None:
    while True:
        waiting()
        await asyncio.sleep(BEAT_S)
