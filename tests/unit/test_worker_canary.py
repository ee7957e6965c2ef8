"""The canary against a server that answers late, wrong, or while it is busy with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from proa.errors import Unavailable
from proa.worker.canary import Canary, Probe

PROBES = [
    Probe(name, service_pb2.ModelInferRequest(model_name="m", id=name)) for name in ("a", "b")
]


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`silent`: never answers inferences. `busy`: others' computations end meanwhile."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent = self.busy = self.sick = False
        self._successes = 0

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.asked.append(request.id)
        if self.silent:
            await asyncio.Event().wait()
        if self.sick:
            await context.abort(grpc.StatusCode.INTERNAL, "Stub process is not healthy")
        return service_pb2.ModelInferResponse(model_name="m")

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        self._successes += int(self.busy)
        one = service_pb2.ModelStatistics(name="m")
        one.inference_stats.success.count = self._successes
        return service_pb2.ModelStatisticsResponse(model_stats=[one])


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Canary]]:
    servicer = Server()
    running = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, running)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with Canary(f"127.0.0.1:{port}", PROBES, timeout_s=0.1) as canary:
        yield servicer, canary
    await running.stop(None)


async def test_probes_take_turns(server: tuple[Server, Canary]) -> None:
    servicer, canary = server
    await canary.wait_all_answer()
    for _ in range(3):
        await canary.check()
    assert servicer.asked == ["a", "b", "a", "b", "a"]


async def test_silence_is_a_failure_unless_others_are_computed(
    server: tuple[Server, Canary],
) -> None:
    servicer, canary = server
    servicer.silent = True
    with pytest.raises(Unavailable, match=r"^a: no answer within 0\.1 s$"):
        await canary.check()
    servicer.busy = True
    await canary.check()


async def test_no_probe_stands_in_the_way_of_a_worker_that_answers(
    server: tuple[Server, Canary],
) -> None:
    servicer, canary = server
    assert await canary.check()
    servicer.busy = True
    assert not await canary.check()
    assert servicer.asked == ["a"]
    servicer.busy = False
    assert await canary.check()


async def test_an_error_is_a_failure(server: tuple[Server, Canary]) -> None:
    servicer, canary = server
    servicer.sick = True
    with pytest.raises(Unavailable, match="a: INTERNAL Stub process is not healthy"):
        await canary.check()


async def test_nobody_there() -> None:
    async with Canary("127.0.0.1:1", PROBES, timeout_s=1.0) as canary:
        with pytest.raises(Unavailable, match="a: UNAVAILABLE"):
            await canary.check()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(canary.wait_all_answer(), 0.3)
