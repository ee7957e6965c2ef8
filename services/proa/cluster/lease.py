"""A coordination.k8s.io Lease as a mutex: one holder at a time, in the whole namespace.

Clocks of two machines are never compared. A holder that died is recognised by its Lease not
changing for `leaseDurationSeconds` on the observer's own clock; a holder counts its own time from
before the request that renewed it, so it gives up before anybody may take over. That holds while
clocks run equally fast and the holder's process is not frozen: work that must never run twice
needs a fence of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from proa.cluster.api import ApiAccess
from proa.cluster.connection import ApiError, Call, Connection
from proa.cluster.retry import Pause, Retry
from proa.errors import BadAnswer, DeadlinePassed, ProaError, Unavailable

GROUP, RESOURCE = "coordination.k8s.io", "leases"
NOT_FOUND, CONFLICT = 404, 409
DURATION_S_MAX = 3600
RELEASE_S = 5.0

Json = dict[str, Any]


@dataclass(frozen=True)
class LeaseTimes:
    """`duration_s`: after so long without a renewal others may take over; `renew_s`: between
    renewals; `poll_s`: between looks of those who wait."""

    duration_s: int = 30
    renew_s: float = 8.0
    poll_s: float = 2.0


@dataclass(frozen=True)
class _Seen:
    """A Lease as read, and since when (our clock) it is as it is."""

    lease: Json
    since: float

    @property
    def holder(self) -> str:
        return str(self.lease["spec"].get("holderIdentity") or "")

    @property
    def version(self) -> str:
        return str(self.lease["metadata"].get("resourceVersion"))

    def expires_at(self, usual_s: int) -> float:
        told = self.lease["spec"].get("leaseDurationSeconds")
        known = isinstance(told, int) and 1 <= told <= DURATION_S_MAX
        return self.since + (told if known else usual_s)


class Lease:
    """`holder`: who we are, unique among the contenders: the pod's name. A Lease that carries our
    own name is one from before our restart, and ours at once. Not for two tasks at a time."""

    def __init__(
        self,
        api: ApiAccess,
        *,
        name: str,
        holder: str,
        on_error: Callable[[str], None],
        namespace: str | None = None,
        times: LeaseTimes | None = None,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._api = api
        self._name = name
        self._holder = holder
        self._on_error = on_error
        self._namespace = namespace or api.namespace
        self._times = times or LeaseTimes()
        self._retry = retry or Retry(most_s=5.0)
        self._clock = clock
        self._pause = pause
        self._seen: _Seen | None = None
        self._ends_at = clock()

    @property
    def unexpired(self) -> bool:
        """By our own clock, now: also where nobody had time yet to notice that it was lost."""
        return self._clock() < self._ends_at

    @contextlib.asynccontextmanager
    async def held(self, acquire_s: float | None = None) -> AsyncIterator[asyncio.Event]:
        """Wait for the Lease, keep it while inside, release it. The event is set if it was lost:
        renewals failed for `duration_s`, or somebody else took it.

        Errors: DeadlinePassed after `acquire_s`, naming who holds it or what failed; ApiError at
        once where waiting does not help (403 names verb, resource and namespace).
        """
        async with Connection(self._api) as connection:
            renewed_at = await self._acquire(connection, acquire_s)
            self._ends_at = renewed_at + self._times.duration_s
            lost = asyncio.Event()
            keeper = asyncio.create_task(self._keep(connection, lost, renewed_at))
            try:
                yield lost
            finally:
                keeper.cancel()
                (end,) = await asyncio.gather(keeper, return_exceptions=True)
                if isinstance(end, Exception):
                    raise end
                if not lost.is_set():
                    await self._release(connection)

    async def _acquire(self, connection: Connection, acquire_s: float | None) -> float:
        """Until it is ours; when (our clock) the request left that made it so."""
        end = None if acquire_s is None else self._clock() + acquire_s
        why = "it was not asked for yet"
        while end is None or self._clock() < end:
            asked_at, wait_s = self._clock(), self._times.poll_s
            try:
                await self._look(connection)
                if self._free():
                    await self._write(connection, self._holder)
                    self._retry.reset()
                    return asked_at
                assert self._seen is not None
                why = f"{self._seen.holder} holds it"
                self._retry.reset()
            except (Unavailable, BadAnswer) as exc:
                why, wait_s = str(exc), self._after(exc)
            await self._pause(wait_s)
        raise DeadlinePassed(f"lease {self._name}: not ours after {acquire_s:g} s: {why}")

    def _after(self, exc: ProaError) -> float:
        """The wait before the next try. Errors: `exc` itself where waiting does not help."""
        if not isinstance(exc, ApiError):
            self._on_error(str(exc))
            return self._retry.next_s()
        if exc.code == CONFLICT:  # somebody was faster
            return self._retry.next_s()
        if exc.code != 429 and exc.code < 500:
            raise exc
        self._on_error(str(exc))
        return self._retry.next_s(exc.retry_after_s)

    async def _look(self, connection: Connection) -> None:
        """Read the Lease. What did not change keeps the time since which we know it."""
        try:
            found = await connection.answer(self._call("get", name=self._name))
        except ApiError as exc:
            if exc.code != NOT_FOUND:
                raise
            self._seen = None
            return
        seen = _Seen(_normal(found), self._clock())
        if self._seen is None or self._seen.version != seen.version:
            self._seen = seen

    def _free(self) -> bool:
        seen = self._seen
        if seen is None or seen.holder in ("", self._holder):
            return True
        return self._clock() >= seen.expires_at(self._times.duration_s)

    async def _write(self, connection: Connection, holder: str | None) -> None:
        """Create or replace the Lease as we saw it; a change since makes that a 409."""
        seen, now = self._seen, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old: Mapping[str, Any] = seen.lease["spec"] if seen else {}
        spec: Json = {"leaseTransitions": old.get("leaseTransitions") or 0}
        if holder is not None:
            spec |= {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._times.duration_s,
                "acquireTime": old.get("acquireTime") or now,
                "renewTime": now,
            }
            if seen and seen.holder != holder:
                spec |= {"leaseTransitions": spec["leaseTransitions"] + 1, "acquireTime": now}
        kept = seen.lease["metadata"] if seen else {"name": self._name}
        lease = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Lease",
            "metadata": {key: value for key, value in kept.items() if key != "managedFields"},
            "spec": spec,
        }
        call = self._call("update", self._name, lease) if seen else self._call("create", body=lease)
        self._seen = _Seen(_normal(await connection.answer(call)), self._clock())

    async def _keep(self, connection: Connection, lost: asyncio.Event, renewed_at: float) -> None:
        """Renew for ever, or set `lost`."""
        wait_s = self._times.renew_s
        while True:
            ends_at = self._ends_at = renewed_at + self._times.duration_s
            await self._pause(max(0.0, min(wait_s, ends_at - self._clock())))
            asked_at = self._clock()
            if asked_at >= ends_at:
                self._on_error(f"lease {self._name}: lost, no renewal for too long")
                break
            try:
                async with asyncio.timeout(ends_at - asked_at):
                    await self._write(connection, self._holder)
                renewed_at, wait_s = asked_at, self._times.renew_s
                self._retry.reset()
            except ApiError as exc:
                if exc.code in (CONFLICT, NOT_FOUND) and not await self._still_ours(connection):
                    self._on_error(f"lease {self._name}: lost, somebody else took it")
                    break
                if exc.code not in (CONFLICT, NOT_FOUND):
                    self._on_error(str(exc))
                wait_s = self._retry.next_s(exc.retry_after_s)
            except (TimeoutError, ProaError) as exc:
                self._on_error(str(exc) or f"lease {self._name}: no answer in time")
                wait_s = self._retry.next_s()
        lost.set()

    async def _still_ours(self, connection: Connection) -> bool:
        """Whether what is there now (somebody else may have annotated it) still names us."""
        with contextlib.suppress(Unavailable, BadAnswer):
            await self._look(connection)
            return self._seen is not None and self._seen.holder == self._holder
        return True  # not known: the next renewal will tell

    async def _release(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(RELEASE_S):
                # Read first: the renewal that was cancelled just now may have arrived.
                await self._look(connection)
                if self._seen is not None and self._seen.holder == self._holder:
                    await self._write(connection, None)
        except (TimeoutError, ProaError) as exc:
            self._on_error(f"lease {self._name}: not released, so it expires: {exc}")

    def _call(self, verb: str, name: str = "", body: Json | None = None) -> Call:
        return Call(verb, GROUP, RESOURCE, self._namespace, name, body=body)


def _normal(lease: Mapping[str, Any]) -> Json:
    """A Lease whose parts are objects, whatever came."""
    parts = {key: lease.get(key) for key in ("metadata", "spec")}
    return {key: dict(value) if isinstance(value, Mapping) else {} for key, value in parts.items()}
