"""Bearer tokens at the frontend's door: who calls, what they may ask, and how often."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter

from proa import rpc
from proa.errors import (
    Overloaded,
    PermissionDenied,
    ProaError,
    SettingsError,
    Unauthenticated,
)
from proa.frontend.tokens import ANYONE, Tenant, read_tokens
from proa.runtime.faults import FAULT_SERVICE

log = logging.getLogger(__name__)

WATCH_S = 2.0
# What anyone may call: probes and load balancers have no token.
OPEN = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
FAULTS = f"/{FAULT_SERVICE}/"
WRONG_MAX = 10  # calls without a right token from one address
WRONG_WINDOW_S = 60.0
PEERS_MAX = 10_000
_SCHEME = "bearer "

CallMetadata = Iterable[tuple[str, Any]] | None


class Bucket:
    """Up to `size` calls at once, and `per_second` in the long run."""

    __slots__ = ("_at", "_left")

    def __init__(self, size: float, now: float) -> None:
        self._left = size
        self._at = now

    def take(self, size: float, per_second: float, now: float) -> float:
        """Take a place: 0.0, or the seconds until there is one."""
        self._left = min(size, self._left + (now - self._at) * per_second)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / per_second


class Auth:
    """The tokens in force. `path` None: no tokens are wanted and everybody is ANYONE.

    Errors: SettingsError, for a file that cannot be used at the start. Later the last good one
    stays in force.
    """

    def __init__(
        self,
        path: Path | None,
        registry: CollectorRegistry,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._now = now
        self._mark = None if path is None else _mark_of(path)
        self._tenants: Mapping[bytes, Tenant] = {} if path is None else read_tokens(path)
        self._buckets: dict[str, Bucket] = {}
        self._peers: OrderedDict[str, Bucket] = OrderedDict()
        self._refused = Counter(
            "proa_frontend_refused_total",
            "Calls refused: missing, wrong, guessing, rate, model or faults",
            ["reason"],
            registry=registry,
        )

    @property
    def wanted(self) -> bool:
        """Whether calls need a token."""
        return self._path is not None

    def tenant(self, metadata: CallMetadata) -> Tenant:
        """Who calls. Errors: Unauthenticated."""
        if self._path is None:
            return ANYONE
        digest = hashlib.sha256(_token_in(metadata).encode(errors="replace")).digest()
        # The time of this look-up tells of hashes at most, which lead to no token.
        found = self._tenants.get(digest)
        if found is None or not hmac.compare_digest(bytes.fromhex(found.sha256), digest):
            raise Unauthenticated("the token is not known here")
        return found

    def admit(self, metadata: CallMetadata) -> Tenant:
        """Who makes this call, which counts. Errors: Unauthenticated; Overloaded."""
        found = self.tenant(metadata)
        rate = found.rate_per_second
        if rate is None:
            return found
        now = self._now()
        bucket = self._buckets.get(found.name)
        if bucket is None:
            bucket = self._buckets[found.name] = Bucket(found.burst_calls, now)
        wait_s = bucket.take(found.burst_calls, rate, now)
        if wait_s > 0.0:
            self._refused.labels("rate").inc()
            raise Overloaded(
                f"token {found.name!r}: more than {rate:g} calls per second", retry_after_s=wait_s
            )
        return found

    def permit(self, metadata: CallMetadata, model: str) -> Tenant:
        """Who calls, if they may ask `model`. Errors: Unauthenticated, PermissionDenied."""
        found = self.tenant(metadata)
        self.check(found, model)
        return found

    def check(self, tenant: Tenant, model: str) -> None:
        """Errors: PermissionDenied."""
        if not tenant.may(model):
            self._refused.labels("model").inc()
        tenant.check(model)

    def check_faults(self, tenant: Tenant, method: str) -> None:
        """Errors: PermissionDenied, for fault injection with a token that is not for it."""
        if method.startswith(FAULTS) and not tenant.faults:
            self._refused.labels("faults").inc()
            raise PermissionDenied(f"token {tenant.name!r} is not for fault injection")

    def blame(self, peer: str, error: Unauthenticated, *, missing: bool) -> ProaError:
        """What to answer `peer`, whose token was missing or wrong: `error`, or once it does that
        too often, Overloaded. Right tokens from there go on: they may come through one proxy."""
        now = self._now()
        bucket = self._peers.pop(peer, None) or Bucket(WRONG_MAX, now)
        self._peers[peer] = bucket
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)
        wait_s = bucket.take(WRONG_MAX, WRONG_MAX / WRONG_WINDOW_S, now)
        if wait_s > 0.0:
            self._refused.labels("guessing").inc()
            return Overloaded(
                f"more than {WRONG_MAX} calls within {WRONG_WINDOW_S:g} s without a right token",
                retry_after_s=wait_s,
            )
        self._refused.labels("missing" if missing else "wrong").inc()
        log.info("call refused peer=%s: %s", peer, error)
        return error

    async def watch(self, interval_s: float = WATCH_S) -> None:
        """Follow the file. Never returns. One that cannot be used changes nothing but the log."""
        while True:
            await asyncio.sleep(interval_s)
            await self.reload()

    async def reload(self) -> None:
        """Look at the file now."""
        if self._path is None or (mark := _mark_of(self._path)) == self._mark:
            return
        self._mark = mark
        try:
            found = await asyncio.to_thread(read_tokens, self._path)
        except SettingsError as exc:
            log.warning("the tokens stay as they were: %s", exc)
            return
        self._tenants = found
        names = {tenant.name for tenant in found.values()}
        self._buckets = {name: b for name, b in self._buckets.items() if name in names}
        log.info("tokens renewed count=%d", len(found))


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets calls of any service pass that have a right token; those under OPEN need none."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if not self._auth.wanted or handler_call_details.method in OPEN:
            return await continuation(handler_call_details)
        metadata: Any = handler_call_details.invocation_metadata
        try:
            tenant = self._auth.admit(metadata)
            self._auth.check_faults(tenant, handler_call_details.method)
        except ProaError as exc:
            missing = not any(key == "authorization" for key, _ in metadata or ())
            return self._refusal(await continuation(handler_call_details), exc, missing)
        return await continuation(handler_call_details)

    def _refusal(self, handler: Any, error: ProaError, missing: bool) -> Any:
        """A handler of the kind of `handler` that ends every call with `error`."""
        if handler is None:  # no such method: gRPC says so
            return None

        async def refuse(context: rpc.Context) -> None:
            said = error
            if isinstance(error, Unauthenticated):
                said = self._auth.blame(_host_of(context.peer()), error, missing=missing)
            await rpc.refuse(context, said, "Gate")

        async def unary(_request: object, context: rpc.Context) -> None:
            await refuse(context)

        async def stream(_request: object, context: rpc.Context) -> AsyncIterator[bytes]:
            await refuse(context)
            yield b""

        makers = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        make: Any = makers[handler.request_streaming, handler.response_streaming]
        return make(stream if handler.response_streaming else unary)


def _token_in(metadata: CallMetadata) -> str:
    """The token of a call. Errors: Unauthenticated."""
    found = [str(value) for key, value in metadata or () if key == "authorization"]
    if not found:
        raise Unauthenticated("a token is wanted: metadata `authorization: Bearer TOKEN`")
    value = found[0]
    if len(found) != 1 or value[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("metadata `authorization` must be `Bearer TOKEN`, once")
    token = value[len(_SCHEME) :]
    if not 1 <= len(token) <= rpc.TOKEN_CHARS_MAX:
        raise Unauthenticated(f"a token has 1 to {rpc.TOKEN_CHARS_MAX} characters")
    return token


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _host_of(peer: str) -> str:
    """`ipv4:10.0.0.1:5000` without its port, which is another for each connection."""
    return peer.rpartition(":")[0] or peer
