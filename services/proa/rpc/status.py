"""Our errors as gRPC statuses, and back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from proa import errors
from proa.errors import InvalidRequest, Overloaded, ProaError, Unavailable
from proa.rpc import store_fault
from proa.rpc.tls import reason_of

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Servicer = TypeVar("Servicer")
Context = grpc.aio.ServicerContext[Any, Any]

DETAILS_CHARS_MAX = 1_000  # details travel as a header; peers refuse headers above 8 KiB
RETRY_AFTER_S_MAX = 60.0
PUSHBACK_KEY = "grpc-retry-pushback-ms"
STATUS_KEY = "grpc-status-details-bin"

_ERRORS: dict[grpc.StatusCode, type[ProaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.UnknownModel,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupported,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlinePassed,
    grpc.StatusCode.CANCELLED: errors.RequestCancelled,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: errors.ProgramRefused,
    grpc.StatusCode.DATA_LOSS: errors.TooManyErasures,
}


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
    if exc.code() is grpc.StatusCode.UNAVAILABLE:
        details = reason_of(details) or details
    message = f"{peer}: {details}" if peer else details
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC says so of messages and headers above the limit too: another try cannot help.
        if "larger than max" in details or "metadata size exceeds" in details:
            return InvalidRequest(message)
        return Overloaded(message, retry_after_s=_retry_after_s(exc))
    of_store = store_fault.error_of(_status_in(exc), message)
    if of_store is not None:
        return of_store
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
            await refuse(context, exc, method.__qualname__)
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
            await refuse(context, exc, method.__qualname__)

    return guarded


async def refuse(context: Context, error: Exception, where: str) -> None:
    """End a call with the status of `error`. `where`: for the log, if it is not ours."""
    if not isinstance(error, ProaError):
        log.error("unexpected error in %s", where, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    message = str(error)[:DETAILS_CHARS_MAX]
    await context.abort(status_of(error), message, _trailers(error, message))


def _trailers(error: Exception, message: str) -> tuple[tuple[str, str | bytes], ...]:
    """For Overloaded, when to come back: as gRPC's own clients read it, and as google.rpc says.
    For errors of the store, a StoreFault."""
    status = status_pb2.Status(code=status_of(error).value[0], message=message)
    fault = store_fault.fault_of(error)
    if fault is not None:
        status.details.add().Pack(fault)
        return ((STATUS_KEY, status.SerializeToString()),)
    if not isinstance(error, Overloaded):
        return ()
    delay = min(max(error.retry_after_s, 0.0), RETRY_AFTER_S_MAX)
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(round(delay * 1e9))
    status.details.add().Pack(info)
    return ((PUSHBACK_KEY, str(round(delay * 1000))), (STATUS_KEY, status.SerializeToString()))


def _status_in(exc: grpc.aio.AioRpcError) -> Any:
    """The google.rpc.Status in the peer's trailers; an empty one where there is none."""
    status = status_pb2.Status()
    for key, value in _trailing(exc):
        if key == STATUS_KEY:
            with contextlib.suppress(DecodeError):
                status.ParseFromString(value)
    return status


def _trailing(exc: grpc.aio.AioRpcError) -> Iterable[Any]:
    return exc.trailing_metadata() or ()


def _retry_after_s(exc: grpc.aio.AioRpcError) -> float:
    """Seconds from the peer's trailers; 0.1 where it says nothing that makes sense."""
    for key, value in _trailing(exc):
        if key == PUSHBACK_KEY and re.fullmatch(r"\d{1,9}", str(value)):
            return min(int(value) / 1000.0, RETRY_AFTER_S_MAX)
    return 0.1
