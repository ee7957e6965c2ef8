"""Unmodified Open Inference Protocol clients, and our own, against the frontend."""

from __future__ import annotations

import asyncio

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from fakes.cluster import cluster
from fakes.triton_fake import images, linear


def _inputs(module, image):
    tensor = module.InferInput("image", image.shape, "FP32")
    tensor.set_data_from_numpy(image)
    return [tensor]


async def test_tritonclient_sync_aio_and_stream_get_the_model_s_answer(tmp_path):
    (image,) = images(1, batch=3)
    async with cluster(tmp_path, "policy: none") as found:

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
