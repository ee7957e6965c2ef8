"""A server of the Open Inference Protocol that does as it is told: real gRPC on loopback.

Its model `double` answers 2x; a query's first number decides what becomes of it (HANG and so on).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from proa import rpc, wire
from proa.errors import InvalidRequest, Overloaded, ProaError, UnknownModel

HANG = -1.0  # never answered
REFUSE = -2.0  # InvalidRequest
OVERLOAD = -3.0  # Overloaded, retry after 0.25 s
ANONYMOUS = -4.0  # on a stream: an error that names no query
VANISH = -5.0  # on a stream: the server forgets it
STRANGE = -6.0  # on a stream: answered under an id that nobody sent
RECONSTRUCT = -7.0  # the answer is marked reconstructed
GARBLE = -8.0  # the output's bytes do not fit its shape


class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Keeps what it was asked; answers a stream's queries in reverse, `reorder` at a time."""

    def __init__(self, reorder: int = 1) -> None:
        self.reorder = reorder
        self.requests: list[Any] = []
        self.metadata_asked = 0
        self.ready = True
        self.open = 0
        self.open_max = 0
        self.streams_open = 0
        self.address = ""

    @rpc.servicer_errors
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return await self.answer(request)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> Any:
        held: list[Any] = []
        self.streams_open += 1
        try:
            async for request in requests:
                self.requests.append(request)
                self.open += 1
                self.open_max = max(self.open_max, self.open)
                held.append(request)
                if len(held) == self.reorder:
                    for reply in await self.replies(held):
                        yield reply
            for reply in await self.replies(held):
                yield reply
        finally:
            self.streams_open -= 1

    @rpc.servicer_errors
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.metadata_asked += 1
        names = {"double": ["x"], "sum": ["a", "b"]}.get(request.name)
        if names is None:
            raise UnknownModel(f"no model {request.name!r}")
        response = service_pb2.ModelMetadataResponse(name=request.name, versions=["1", "2"])
        for name in names:
            response.inputs.add(name=name, datatype="FP32", shape=[-1, 2])
        response.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
        return response

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        response.models.add(name="double", version="2", state="READY")
        response.models.add(name="sum", version="1", state="UNAVAILABLE", reason="loading")
        return response

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    @rpc.servicer_errors
    async def ModelReady(self, request: Any, context: Any) -> Any:
        if request.name != "double":
            raise UnknownModel(f"no model {request.name!r}")
        return service_pb2.ModelReadyResponse(ready=self.ready)

    async def replies(self, held: list[Any]) -> list[Any]:
        found = [await self.stream_reply(request) for request in reversed(held)]
        self.open -= len(held)
        held.clear()
        return [reply for reply in found if reply is not None]

    async def stream_reply(self, request: Any) -> Any:
        first = float(first_input(request).flat[0])
        if first == VANISH:
            return None
        reply = service_pb2.ModelStreamInferResponse()
        try:
            reply.infer_response.CopyFrom(await self.answer(request))
        except ProaError as error:
            reply.error_message = str(error)
            reply.infer_response.id = request.id
            parameters: dict[str, wire.Parameter] = {"proa.status": error.status}
            if isinstance(error, Overloaded):
                parameters["proa.retry_after_ms"] = round(error.retry_after_s * 1000)
            wire.set_parameters(reply.infer_response.parameters, parameters)
        if first == ANONYMOUS:
            return service_pb2.ModelStreamInferResponse(error_message="the stream is tired")
        if first == STRANGE:
            reply.infer_response.id = "12345"
        return reply

    async def answer(self, request: Any) -> Any:
        x = first_input(request)
        first = float(x.flat[0])
        if request.model_name != "double":
            raise UnknownModel(f"no model {request.model_name!r}")
        if first == HANG:
            await asyncio.Event().wait()
        if first == REFUSE:
            raise InvalidRequest("input 'x': shape [3] is not [-1, 2]")
        if first == OVERLOAD:
            raise Overloaded("512 requests are open; the limit is 512", retry_after_s=0.25)
        source = "reconstructed" if first == RECONSTRUCT else "worker"
        parameters: dict[str, wire.Parameter] = {"proa.source": source, "proa.group": 7}
        if source == "worker":
            parameters |= {"proa.worker": "worker-1", "proa.abft": "repaired"}
        response = wire.write_response("double", "2", request.id, {"y": 2 * x}, parameters)
        if first == GARBLE:
            response.raw_output_contents[0] = b"abc"
        return response


def first_input(request: Any) -> np.ndarray[Any, Any]:
    return next(iter(wire.read_request(request).values()))


@asynccontextmanager
async def serving(fake: FakeServer) -> AsyncIterator[FakeServer]:
    """The fake on a free port of loopback until the block ends."""
    server = grpc.aio.server(options=rpc.server_options(1 << 26))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)
