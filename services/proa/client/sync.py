"""The client for programs without an event loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from proa import rpc
from proa.client import messages
from proa.client.batch import INFLIGHT_MAX, Batch, check_inflight
from proa.client.messages import MESSAGE_BYTES_MAX, Call, CallOptions, Inputs, Options
from proa.client.spans import Headers, Spans
from proa.client.values import Answer, Metadata, ModelInfo
from proa.errors import DeadlinePassed, ProaError, Unavailable, UnknownModel
from proa.rpc import Tls


class Client:
    """A client of the server at `address` (host:port); it connects at the first call.

    deadline_s, exact and policy are the defaults of every call (see CallOptions). Any number of
    threads may use it. tls: speak TLS, with Tls() towards a certificate that gRPC believes; None:
    in the clear. token: of a frontend that wants one; who reads the wire without TLS has it.
    retry: a call that finds no server, or whose server stops, is made again, a few times within its
    deadline (an inference changes nothing, so it may run twice). Errors: the tree in `proa.client`;
    InvalidRequest for a bad address, deadline, token or file of `tls`; RuntimeError once closed.
    """

    def __init__(
        self,
        address: str,
        *,
        deadline_s: float | None = None,
        exact: bool = False,
        policy: str | None = None,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        tls: Tls | None = None,
        token: str | None = None,
        retry: bool = True,
    ) -> None:
        self.address = rpc.check_address(address)
        self._options = Options(exact=exact, policy=policy, deadline_s=deadline_s)
        self._metadata_sent = rpc.bearer(token) or ()
        self._spans = Spans(self.address)
        self._channel = _connect(
            address, message_bytes_max, tls.read() if tls else None, retry=retry
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = False
        self._input_names: dict[tuple[str, str], str] = {}

    def infer(self, model: str, inputs: Inputs, **call: Unpack[CallOptions]) -> Answer:
        """Ask `model` one query.

        inputs: arrays with batch axis by input name; or one array, if the model has one input
        (whose name the client asks for the first time). call: see CallOptions.
        """
        begun = self._begin(model, call)
        request = begun.stamp(begun.write(inputs, self._input_name(begun, [inputs])))
        with self._spans.of("ModelInfer", model) as span:
            answer = messages.read_answer(self._unary("ModelInfer", request, begun, span.metadata))
            span.answered(answer.source)
        return answer

    def infer_many(
        self,
        model: str,
        queries: Sequence[Inputs],
        *,
        inflight_max: int = INFLIGHT_MAX,
        **call: Unpack[CallOptions],
    ) -> list[Answer]:
        """Ask `model` many queries over one stream; the answers come in the order of `queries`.

        At most inflight_max are under way at once; deadline_s holds for all of them together. The
        first query that fails raises its error and ends the call: see `infer_each`.
        """
        begun = self._begin(model, call)
        batch = Batch(begun, queries, self._input_name(begun, queries))
        self._stream(batch, check_inflight(inflight_max))
        return batch.answers()

    def infer_each(
        self,
        model: str,
        queries: Sequence[Inputs],
        *,
        inflight_max: int = INFLIGHT_MAX,
        **call: Unpack[CallOptions],
    ) -> list[Answer | ProaError]:
        """As `infer_many`, but a failed query's error stands in the list in place of its answer.

        Still raised: what ends the stream itself (Unavailable, DeadlinePassed, BadAnswer).
        """
        begun = self._begin(model, call)
        batch = Batch(begun, queries, self._input_name(begun, queries), return_errors=True)
        self._stream(batch, check_inflight(inflight_max))
        return batch.results()

    def models(self) -> list[ModelInfo]:
        """The models that the server lists, ready or not."""
        request = service_pb2.RepositoryIndexRequest()
        return messages.read_models(self._unary("RepositoryIndex", request, self._begin("", {})))

    def metadata(self, model: str, version: str = "") -> Metadata:
        """Inputs and outputs of `model`."""
        return self._metadata(self._begin(model, {"version": version}))

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or this model on it, takes queries; False if it cannot be asked."""
        method, request = messages.write_ready(model)
        try:
            return bool(self._unary(method, request, self._begin("", {})).ready)
        except (Unavailable, DeadlinePassed, UnknownModel):
            return False

    def close(self) -> None:
        """Close the connection; calls under way in other threads are cancelled."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, model: str, call: CallOptions) -> Call:
        if self._closed:
            raise RuntimeError("the client is closed")
        return Call(model, replace(self._options, **call))

    def _input_name(self, begun: Call, queries: Sequence[Inputs]) -> str | None:
        """The name for arrays that come without one; None where every array has its name."""
        if not messages.unnamed(queries):
            return None
        key = (begun.model, begun.options.version)
        if key not in self._input_names:
            self._input_names[key] = messages.only_input(self._metadata(begun))
        return self._input_names[key]

    def _metadata(self, begun: Call) -> Metadata:
        request = messages.write_metadata(begun)
        return messages.read_metadata(self._unary("ModelMetadata", request, begun))

    def _unary(self, method: str, request: Any, begun: Call, trace: Headers = ()) -> Any:
        with _peer_errors(self.address):
            return getattr(self._stub, method)(
                request, timeout=begun.remaining_s(), metadata=(*self._metadata_sent, *trace)
            )

    def _stream(self, batch: Batch, inflight_max: int) -> None:
        slots = threading.Semaphore(inflight_max)
        over = threading.Event()

        def requests() -> Iterator[Any]:  # runs in a thread of grpc's
            for request in batch.requests:
                slots.acquire()
                if over.is_set():
                    return
                yield batch.call.stamp(request)

        if not batch.requests:
            return
        with (
            self._spans.of("ModelStreamInfer", batch.call.model) as span,
            _peer_errors(self.address),
        ):
            call = self._stub.ModelStreamInfer(
                requests(),
                timeout=batch.call.remaining_s(),
                metadata=(*self._metadata_sent, *span.metadata),
            )
            try:
                for reply in call:
                    batch.accept(reply)
                    slots.release()
            finally:
                over.set()
                slots.release()  # the thread may be waiting for a slot
                call.cancel()


def _connect(
    address: str, message_bytes_max: int, tls: rpc.ChannelTls | None, *, retry: bool
) -> grpc.Channel:
    """The synchronous counterpart of `rpc.connect`."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", rpc.KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", rpc.KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", rpc.RECONNECT_BACKOFF_MS_MAX),
        *(rpc.RETRY_OPTIONS if retry else (("grpc.enable_retries", 0),)),
    ]
    return rpc.open_channel_sync(address, tls, options)


@contextmanager
def _peer_errors(peer: str) -> Iterator[None]:
    """The synchronous counterpart of `rpc.peer_errors`."""
    try:
        yield
    except grpc.RpcError as exc:
        # A synchronous call that failed has the code, details and trailers of an AioRpcError.
        raise rpc.error_from(cast("grpc.aio.AioRpcError", exc), peer) from exc
