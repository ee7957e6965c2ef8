"""gRPC at one border: channels, server options, and errors to and from statuses.

Nothing above this module catches grpc errors or names a StatusCode. Errors of a peer come out of
`peer_errors` as our own tree, chained; our own errors go out through `servicer_errors`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from proa import errors
from proa.errors import InvalidRequest, Overloaded, ProaError, Unavailable

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Servicer = TypeVar("Servicer")
Context = grpc.aio.ServicerContext[Any, Any]

KEEPALIVE_TIME_MS = 1_000
KEEPALIVE_TIMEOUT_MS = 2_000
RECONNECT_BACKOFF_MS_MAX = 1_000
DETAILS_CHARS_MAX = 1_000  # details travel as a header; peers refuse headers above 8 KiB
RETRY_AFTER_S_MAX = 60.0
PUSHBACK_KEY = "grpc-retry-pushback-ms"
STATUS_KEY = "grpc-status-details-bin"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\]):(?P<port>\d{{1,5}})")
_ADDRESS_CHARS_MAX = 260

_ERRORS: dict[grpc.StatusCode, type[ProaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.UnknownModel,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupported,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlinePassed,
    grpc.StatusCode.CANCELLED: errors.RequestCancelled,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.FAILED_PRECONDITION: errors.ProgramRefused,
    grpc.StatusCode.DATA_LOSS: errors.TooManyErasures,
}


def check_address(address: str) -> str:
    """`address` if it is host:port (DNS name, IPv4, [IPv6]). Errors: InvalidRequest.

    Nothing else passes: gRPC would also take `unix:/path` or `xds:name` for an address.
    """
    found = _ADDRESS.fullmatch(address) if len(address) <= _ADDRESS_CHARS_MAX else None
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise InvalidRequest(f"address {address[:80]!r} is not host:port with a port 1 to 65535")
    return address


def connect(address: str, *, message_bytes_max: int) -> grpc.aio.Channel:
    """A channel to `address` (host:port), one connection of its own; connects at the first call.

    A peer that is frozen or unplugged is noticed within 3 s even in the middle of a call, which
    needs servers that accept such pings (`server_options`). Errors: InvalidRequest.
    """
    options = [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Pings that measure bandwidth hold back the keepalive ones: both need the short timeout.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
    ]
    # Without the scheme a host named `unix` or `dns` would be taken for one.
    return grpc.aio.insecure_channel(f"dns:///{check_address(address)}", options=options)


def server_options(message_bytes_max: int) -> list[tuple[str, int]]:
    """Options of a grpc.aio.server: message limit, the pings of `connect`, one server per port."""
    return [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


class Channels:
    """Open channels by address, the least recently used one closed beyond `channels_max`.

    A channel is valid until the next await of its user; calls that are under way when it is pushed
    out have `grace_s` to end.
    """

    def __init__(
        self,
        *,
        message_bytes_max: int,
        channels_max: int = 256,
        grace_s: float = 30.0,
    ) -> None:
        self._message_bytes_max = message_bytes_max
        self._channels_max = channels_max
        self._grace_s = grace_s
        self._open: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, address: str) -> grpc.aio.Channel:
        """The channel to `address`. Errors: InvalidRequest."""
        channel = self._open.get(address)
        if channel is None:
            channel = connect(address, message_bytes_max=self._message_bytes_max)
            self._open[address] = channel
            if len(self._open) > self._channels_max:
                self._push_out(self._open.popitem(last=False)[1])
        self._open.move_to_end(address)
        return channel

    def __len__(self) -> int:
        return len(self._open)

    async def close(self) -> None:
        """Close all channels at once; calls under way are cancelled."""
        for task in self._closing:
            task.cancel()
        channels, self._open = list(self._open.values()), OrderedDict()
        await asyncio.gather(
            *(channel.close(None) for channel in channels), *self._closing, return_exceptions=True
        )

    def _push_out(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close(self._grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def status_of(error: BaseException) -> grpc.StatusCode:
    """The status that tells a peer about `error`."""
    if isinstance(error, ProaError):
        return grpc.StatusCode[error.status]
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.INTERNAL


def error_from(exc: grpc.aio.AioRpcError, peer: str = "") -> ProaError:
    """The error of ours that a peer's status stands for; BadAnswer for those we have none for."""
    details = (exc.details() or exc.code().name)[:DETAILS_CHARS_MAX]
    message = f"{peer}: {details}" if peer else details
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC says so of a message above the limit too, where another try cannot help.
        if "larger than max" in details:
            return InvalidRequest(message)
        return Overloaded(message, retry_after_s=_retry_after_s(exc))
    return _ERRORS.get(exc.code(), errors.BadAnswer)(message)


class peer_errors:  # noqa: N801  # read as a statement: `async with peer_errors(...)`
    """`async with peer_errors("encoder 127.0.0.1:8010"):` maps grpc errors to ours, chained."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(exc, grpc.aio.AioRpcError):
            raise error_from(exc, self._peer) from exc
        if isinstance(exc, grpc.aio.UsageError):  # the channel was closed under the call
            raise Unavailable(f"{self._peer}: the connection was closed") from exc


def servicer_errors(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Decorate a unary handler: what it raises becomes a status, never a traceback."""

    @functools.wraps(method)
    async def guarded(servicer: Servicer, request: Request, context: Context) -> Response:
        try:
            return await method(servicer, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as exc:  # the border: all of it is mapped
            await _abort(context, exc, method.__qualname__)
            raise AssertionError("abort raises") from exc

    return guarded


def servicer_stream_errors(
    method: Callable[[Servicer, Request, Context], AsyncIterator[Response]],
) -> Callable[[Servicer, Request, Context], AsyncIterator[Response]]:
    """The same for a handler that is an async generator."""

    @functools.wraps(method)
    async def guarded(
        servicer: Servicer, request: Request, context: Context
    ) -> AsyncIterator[Response]:
        try:
            async for response in method(servicer, request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as exc:  # noqa: BLE001  # the border: all of it is mapped
            await _abort(context, exc, method.__qualname__)

    return guarded


async def _abort(context: Context, error: Exception, where: str) -> None:
    if not isinstance(error, ProaError):
        log.error("unexpected error in %s", where, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    message = str(error)[:DETAILS_CHARS_MAX]
    await context.abort(status_of(error), message, _trailers(error, message))


def _trailers(error: Exception, message: str) -> tuple[tuple[str, str | bytes], ...]:
    """For Overloaded, when to come back: as gRPC's own clients read it, and as google.rpc says."""
    if not isinstance(error, Overloaded):
        return ()
    delay = min(max(error.retry_after_s, 0.0), RETRY_AFTER_S_MAX)
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=message)
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(round(delay * 1e9))
    status.details.add().Pack(info)
    return ((PUSHBACK_KEY, str(round(delay * 1000))), (STATUS_KEY, status.SerializeToString()))


def _retry_after_s(exc: grpc.aio.AioRpcError) -> float:
    """Seconds from the peer's trailers; 0.1 where it says nothing that makes sense."""
    trailers: Iterable[Any] = exc.trailing_metadata() or ()
    for key, value in trailers:
        if key == PUSHBACK_KEY and re.fullmatch(r"\d{1,9}", str(value)):
            return min(int(value) / 1000.0, RETRY_AFTER_S_MAX)
    return 0.1
