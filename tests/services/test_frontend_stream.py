"""ModelStreamInfer: many requests on one stream, each with an answer or an error of its own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fakes.cluster import cluster, request, until
from fakes.eventually import eventually
from fakes.triton_fake import images, linear
from proa import wire
from proa.client import AsyncClient
from proa.errors import InvalidRequest, UnknownModel

MANY = 200


def named(request_id, **parameters):
    found = request(**parameters)
    found.id = request_id
    return found


class Stream:
    """One open stream; `answers` holds what has been read."""

    def __init__(self, served):
        self.call = served.stub.ModelStreamInfer()

    async def send(self, *messages):
        for message in messages:
            await self.call.write(message)

    async def read(self):
        return await asyncio.wait_for(self.call.read(), 10)


def parameters(response):
    return wire.get_parameters(response.infer_response.parameters)


async def test_an_error_names_its_request_and_status_and_the_stream_goes_on(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        stream = Stream(served)
        bad = named("bad")
        bad.inputs[0].name = "picture"
        await stream.send(bad)
        response = await stream.read()
        assert "'picture' is unknown" in response.error_message
        assert response.infer_response.id == "bad"
        assert parameters(response) == {"proa.status": "INVALID_ARGUMENT"}
        await stream.send(named("good"))
        response = await stream.read()
        assert response.error_message == ""
        assert response.infer_response.id == "good"
        assert parameters(response)["proa.source"] == "worker"
        stream.call.cancel()


async def test_a_full_queue_says_in_the_stream_when_to_come_back(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, queue_max=1) as served:
        served.workers[0].pause()
        stream = Stream(served)
        await stream.send(*(named(str(i)) for i in range(3)))
        response = await stream.read()
        assert "queue is full" in response.error_message
        assert parameters(response)["proa.status"] == "RESOURCE_EXHAUSTED"
        assert parameters(response)["proa.retry_after_ms"] > 0
        served.workers[0].resume()
        rest = {(await stream.read()).infer_response.id for _ in range(2)}
        assert rest | {response.infer_response.id} == {"0", "1", "2"}
        stream.call.cancel()


async def test_answers_without_an_id_come_in_order_others_as_they_are_ready(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=2) as served:
        for worker in served.workers:
            worker.pause()
        queries = images(2, seed=1)
        stream = Stream(served)
        await stream.send(request(queries[0]))
        await eventually(lambda: sum(w.calls["deployed"] for w in served.workers) == 3)
        (first,) = (w for w in served.workers if w.calls["deployed"] == 2)
        (second,) = (w for w in served.workers if w is not first)
        await stream.send(request(queries[1]), named("quick"))
        second.resume()
        response = await stream.read()
        assert response.infer_response.id == "quick"
        first.resume()
        for query in queries:
            found = wire.read_response((await stream.read()).infer_response)["logits"]
            np.testing.assert_allclose(found, linear(query), rtol=1e-4)
        stream.call.cancel()


async def test_a_client_that_does_not_read_is_not_read_from(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=2, stream_inflight_max=4) as served:
        stream = Stream(served)
        large = "x" * 200_000  # comes back with the answer
        messages = [named(f"{i}{large}") for i in range(MANY)]
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.send(*messages))
            await eventually(lambda: sum(served.computed) > 4)
            await until(lambda: is_still(served))
            assert sum(served.computed) < MANY
            for _ in range(MANY):
                assert (await stream.read()).error_message == ""
        stream.call.cancel()


async def is_still(served):
    """Whether no query is answered while the frontend answers others' calls."""
    before = sum(served.computed)
    for _ in range(50):
        await served.states()
    return sum(served.computed) == before


async def test_requests_of_a_stream_that_ends_are_withdrawn(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        served.workers[0].pause()
        stream = Stream(served)
        await stream.send(*(named(str(i)) for i in range(5)))
        await until(lambda: queued(served, 4))
        stream.call.cancel()
        await until(lambda: queued(served, 0))
        served.workers[0].resume()
        assert (await served.infer(request(), timeout_s=5)).outputs
        # Canary, the one that had begun, the last one.
        assert served.workers[0].calls["deployed"] == 3


async def queued(served, count):
    return (await served.status()).queue_depth == count


async def test_our_client_multiplexes_many_queries(tmp_path):
    async with (
        cluster(tmp_path, workers=3, stream_inflight_max=16) as served,
        AsyncClient(served.address, deadline_s=20.0) as client,
    ):
        queries = images(300)
        answers = await client.infer_many("digits", queries)
        for query, answer in zip(queries, answers, strict=True):
            np.testing.assert_allclose(answer.only, linear(query), rtol=1e-3, atol=1e-3)
        bad = [queries[0], queries[1][:, :, :7]]
        good, error = await client.infer_each("digits", bad)
        assert good.source
        assert isinstance(error, InvalidRequest)
        with pytest.raises(UnknownModel):
            await client.infer_many("letters", [{"image": queries[0]}])
