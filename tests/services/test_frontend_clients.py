"""Unmodified Open Inference Protocol clients, and our own, against the frontend."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from fakes.cluster import cluster
from fakes.triton_fake import images, linear
from proa.client import AsyncClient


def _inputs(module, image):
    tensor = module.InferInput("image", image.shape, "FP32")
    tensor.set_data_from_numpy(image)
    return [tensor]


async def _ready(address):
    async with AsyncClient(address) as client:
        for _ in range(200):
            if await client.is_ready("digits"):
                return
            await asyncio.sleep(0.02)
    pytest.fail("the frontend did not become ready")


async def test_tritonclient_sync_aio_and_stream_get_the_model_s_answer(tmp_path):
    (image,) = images(1, batch=3)
    async with cluster(tmp_path, "policy: none") as found:
        await _ready(found.address)

        def sync():
            client = triton.InferenceServerClient(found.address)
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("digits")
            assert client.get_server_metadata().name == "proa"
            meta = client.get_model_metadata("digits")
            assert list(meta.inputs[0].shape) == [-1, 1, 8, 8]
            assert client.get_model_config("digits").config.max_batch_size == 8
            assert client.get_model_repository_index().models[0].state == "READY"
            answer = client.infer("digits", _inputs(triton, image), request_id="7")
            answers = []
            client.start_stream(lambda result, error: answers.append((result, error)))
            for i in range(5):
                client.async_stream_infer("digits", _inputs(triton, image), request_id=str(i))
            client.stop_stream()
            stats = client.get_inference_statistics("digits").model_stats[0]
            client.close()
            return answer, answers, stats

        answer, answers, stats = await asyncio.to_thread(sync)
        np.testing.assert_allclose(answer.as_numpy("logits"), linear(image), rtol=1e-5)
        assert answer.get_response().id == "7"
        assert answer.get_response().parameters["proa.source"].string_param == "worker"
        assert [error for _, error in answers] == [None] * 5
        assert {r.get_response().id for r, _ in answers} == set("01234")
        assert stats.inference_count == 6

        async with triton_aio.InferenceServerClient(found.address) as client:
            answer = await client.infer("digits", _inputs(triton_aio, image))
            np.testing.assert_allclose(answer.as_numpy("logits"), linear(image), rtol=1e-5)


async def test_a_stuck_worker_s_query_is_reconstructed_and_the_worker_comes_back(tmp_path):
    policy = "policy: parity, patience: first, groupMsMax: 1, qualitySample: 0, idleReserve: 0"
    async with cluster(tmp_path, policy, service_s=0.005) as found:
        await _ready(found.address)
        async with AsyncClient(found.address, deadline_s=2.0) as client:
            queries = images(40)
            for query in queries[:20]:  # fills the reservoir
                await client.infer("digits", query)
            sources = set()
            for worker in found.workers:  # each one stuck in turn
                worker.pause()
                for query in queries:
                    answer = await client.infer("digits", query)
                    want = linear(query)
                    np.testing.assert_allclose(answer["logits"], want, rtol=1e-3, atol=1e-3)
                    sources.add(answer.source)
                before = worker.computed["deployed"]
                worker.resume()
                async with asyncio.timeout(20):
                    while worker.computed["deployed"] <= before + 1:  # back, and used again
                        await client.infer("digits", queries[0])
            assert "reconstructed" in sources
