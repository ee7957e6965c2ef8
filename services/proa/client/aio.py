"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, Unpack

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from proa import rpc
from proa.client import messages
from proa.client.batch import INFLIGHT_MAX, Batch, check_inflight
from proa.client.messages import MESSAGE_BYTES_MAX, Call, CallOptions, Inputs, Options
from proa.client.spans import Headers, Spans
from proa.client.values import Answer, Metadata, ModelInfo
from proa.errors import DeadlinePassed, ProaError, RequestCancelled, Unavailable, UnknownModel
from proa.rpc import Tls


class AsyncClient:
    """A client of the server at `address` (host:port); it connects at the first call.

    deadline_s, exact and policy are the defaults of every call (see CallOptions). Used in one
    event loop, by any number of tasks. tls: speak TLS, with Tls() towards a certificate that gRPC
    believes; None: in the clear. token: of a frontend that wants one; who reads the wire without
    TLS has it. retry: a call that finds no server, or whose server stops, is made again, a few
    times within its deadline (an inference changes nothing, so it may run twice). Errors: the tree
    in `proa.client`; InvalidRequest for a bad address, deadline, token or file of `tls`;
    RuntimeError once closed.
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
        self._message_bytes_max = message_bytes_max
        self._tls = tls.read() if tls else None
        self._metadata_sent = rpc.bearer(token) or ()
        self._spans = Spans(self.address)
        self._retry = retry
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._input_names: dict[tuple[str, str], str] = {}

    async def infer(self, model: str, inputs: Inputs, **call: Unpack[CallOptions]) -> Answer:
        """Ask `model` one query.

        inputs: arrays with batch axis by input name; or one array, if the model has one input
        (whose name the client asks for the first time). call: see CallOptions.
        """
        begun = self._begin(model, call)
        input_name = await self._input_name(begun, [inputs])
        request = begun.stamp(begun.write(inputs, input_name))
        with self._spans.of("ModelInfer", model) as span:
            reply = await self._unary("ModelInfer", request, begun, span.metadata)
            answer = messages.read_answer(reply)
            span.answered(answer.source)
        return answer

    async def infer_many(
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
        batch = Batch(begun, queries, await self._input_name(begun, queries))
        await self._stream(batch, check_inflight(inflight_max))
        return batch.answers()

    async def infer_each(
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
        input_name = await self._input_name(begun, queries)
        batch = Batch(begun, queries, input_name, return_errors=True)
        await self._stream(batch, check_inflight(inflight_max))
        return batch.results()

    async def models(self) -> list[ModelInfo]:
        """The models that the server lists, ready or not."""
        request = service_pb2.RepositoryIndexRequest()
        begun = self._begin("", {})
        return messages.read_models(await self._unary("RepositoryIndex", request, begun))

    async def metadata(self, model: str, version: str = "") -> Metadata:
        """Inputs and outputs of `model`."""
        return await self._metadata(self._begin(model, {"version": version}))

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or this model on it, takes queries; False if it cannot be asked."""
        method, request = messages.write_ready(model)
        try:
            return bool((await self._unary(method, request, self._begin("", {}))).ready)
        except (Unavailable, DeadlinePassed, UnknownModel):
            return False

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _begin(self, model: str, call: CallOptions) -> Call:
        return Call(model, replace(self._options, **call))

    async def _input_name(self, begun: Call, queries: Sequence[Inputs]) -> str | None:
        """The name for arrays that come without one; None where every array has its name."""
        if not messages.unnamed(queries):
            return None
        key = (begun.model, begun.options.version)
        if key not in self._input_names:
            self._input_names[key] = messages.only_input(await self._metadata(begun))
        return self._input_names[key]

    async def _metadata(self, begun: Call) -> Metadata:
        request = messages.write_metadata(begun)
        return messages.read_metadata(await self._unary("ModelMetadata", request, begun))

    async def _unary(self, method: str, request: Any, begun: Call, trace: Headers = ()) -> Any:
        stub = self._stub()
        async with self._peer_errors():
            return await getattr(stub, method)(
                request, timeout=begun.remaining_s(), metadata=(*self._metadata_sent, *trace)
            )

    async def _stream(self, batch: Batch, inflight_max: int) -> None:
        slots = asyncio.Semaphore(inflight_max)

        async def requests() -> AsyncIterator[Any]:
            for request in batch.requests:
                await slots.acquire()
                yield batch.call.stamp(request)

        if not batch.requests:
            return
        stub = self._stub()
        with self._spans.of("ModelStreamInfer", batch.call.model) as span:
            call = stub.ModelStreamInfer(
                requests(),
                timeout=batch.call.remaining_s(),
                metadata=(*self._metadata_sent, *span.metadata),
            )
            try:
                async with self._peer_errors():
                    async for reply in call:
                        batch.accept(reply)
                        slots.release()
            finally:
                call.cancel()

    @asynccontextmanager
    async def _peer_errors(self) -> AsyncIterator[None]:
        try:
            async with rpc.peer_errors(self.address):
                yield
        except asyncio.CancelledError:
            # A closing channel cancels its calls, which must not look as if the task were.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise RequestCancelled("the client was closed during the call") from None
            raise

    def _stub(self) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            self._channel = rpc.connect(
                self.address,
                message_bytes_max=self._message_bytes_max,
                tls=self._tls,
                retry=self._retry,
            )
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
