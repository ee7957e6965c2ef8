"""Whatever a client sends or does wrong gets an error that says what, and hurts nobody else."""

from __future__ import annotations

import re

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from fakes.cluster import Load, cluster, frontend, request, until, worker_list, write_spec
from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images, linear
from proa import wire
from proa.errors import (
    BadAnswer,
    DeadlinePassed,
    InvalidRequest,
    ProaError,
    Unavailable,
    UnknownModel,
)


async def works(served):
    """A good request is answered, and right."""
    (image,) = images(1, batch=2, seed=5)
    response = await served.infer(request(image), timeout_s=5)
    np.testing.assert_allclose(wire.read_response(response)["logits"], linear(image), rtol=1e-4)


def changed(change, **parameters):
    """A good request with one thing wrong with it."""
    found = request(**parameters)
    change(found)
    return found


def tensor(name="image", array=None):
    array = images(1)[0] if array is None else array
    return wire.write_request("digits", {name: array}, outputs=())


def typed(image):
    found = request(image)
    del found.raw_input_contents[:]
    found.inputs[0].contents.fp32_contents.extend(image.ravel().tolist())
    return found


def raw_and_typed():
    found = request()
    found.inputs[0].contents.fp32_contents.extend([0.0] * 64)
    return found


def missing_input():
    found = request()
    del found.inputs[:]
    del found.raw_input_contents[:]
    return found


BAD = {
    "shape": (lambda: request(np.zeros((1, 1, 8, 9), np.float32)), r"'image'.*8, 9\].*8, 8\]"),
    "rank": (lambda: request(np.zeros((1, 64), np.float32)), r"'image'.*\[1, 64\].*batch, 1"),
    "dtype": (lambda: request(np.zeros((1, 1, 8, 8))), "'image'.*FP64, not FP32"),
    "no dtype": (lambda: changed(lambda r: setattr(r.inputs[0], "datatype", "FP33")), "'FP33'"),
    "bytes": (
        lambda: changed(lambda r: r.raw_input_contents.__setitem__(0, b"12")),
        "'image'.*takes 256 bytes, got 2",
    ),
    "both contents": (raw_and_typed, "'image'.*typed contents beside raw"),
    "no contents": (
        lambda: changed(lambda r: r.raw_input_contents.pop()),
        "'image'.*64 elements, got 0",
    ),
    "unknown input": (lambda: tensor("picture"), "'picture' is unknown; the model has image"),
    "missing input": (missing_input, "'image' is missing"),
    "unknown output": (
        lambda: changed(lambda r: r.outputs.add(name="probability")),
        "'probability' is unknown; the model has logits",
    ),
    "NaN": (lambda: request(np.full((1, 1, 8, 8), np.nan, np.float32)), "'image' holds NaN"),
    "large batch": (lambda: request(images(1, batch=9)[0]), "batch is 9; the limits are 1 to 8"),
    "no batch": (lambda: request(np.zeros((0, 1, 8, 8), np.float32)), "batch is 0.*1 to 8"),
    "exact": (lambda: request(proa_exact="yes"), "'proa.exact' must be a bool, not 'yes'"),
    "policy": (lambda: request(proa_policy="magic"), "'proa.policy' is 'magic'.*hedge, parity"),
    "policy type": (lambda: request(proa_policy=3), "'proa.policy'"),
    "timeout": (lambda: request(timeout=0), "'timeout' must be 1 to 3600000000 microseconds"),
    "long timeout": (lambda: request(timeout=3_600_000_001), "'timeout'"),
    "timeout type": (lambda: request(timeout="soon"), "'timeout'"),
    "empty parameter": (lambda: changed(lambda r: r.parameters["x"].Clear()), "'x' has no value"),
}


async def test_a_bad_request_is_told_field_and_limit_and_the_next_one_works(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        for name, (make, words) in BAD.items():
            with pytest.raises(InvalidRequest) as raised:
                await served.infer(make(), timeout_s=5)
            assert re.search(words, str(raised.value)), name
            await works(served)
        assert served.workers[0].failed == 0
        assert await served.metric(
            "proa_frontend_requests_total", status="INVALID_ARGUMENT", model="digits"
        ) == len(BAD)


async def test_unknown_model_and_version_are_not_found(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        with pytest.raises(UnknownModel, match="'letters' is unknown; served: digits"):
            await served.infer(changed(lambda r: setattr(r, "model_name", "letters")))
        with pytest.raises(UnknownModel, match="'digits' has version 1, not '7'"):
            await served.infer(changed(lambda r: setattr(r, "model_version", "7")))
        await works(served)


async def test_typed_contents_are_as_good_as_raw_ones(tmp_path):
    (image,) = images(1, batch=3)
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        response = await served.infer(typed(image))
        np.testing.assert_allclose(wire.read_response(response)["logits"], linear(image), rtol=1e-4)


async def test_an_oversized_message_is_refused_with_the_limit(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, message_bytes_max=1 << 16) as served:
        large = np.zeros((1, 1, 200, 200), np.float32)
        with pytest.raises(InvalidRequest, match=r"larger than max.*65536"):
            await served.infer(request(large))
        await works(served)


async def test_a_worker_that_answers_a_wrong_shape_is_left_for_another(tmp_path):
    async with cluster(tmp_path, "policy: retry", workers=2, canary_s=60.0) as served:
        served.workers[0].change = lambda logits: logits[:, :5]
        async with Load(served.address) as load:
            await until(lambda: states_are(served, ["suspected", "up"]))
            served.workers[0].change = None
            await until(lambda: states_are(served, ["up", "up"]))
        assert load.errors == []
        assert load.sources == {"worker", "retry"}


async def states_are(served, wanted):
    return await served.states() == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits[:, :5], r"'logits': shape is \[1, 5\], not \[batch, 10\]"),
        (lambda logits: logits.astype(np.float64), "'logits': datatype is FP64, not FP32"),
        (lambda logits: np.repeat(logits, 2, axis=0), "'logits' has batch 2, not 1"),
        (lambda logits: logits * np.nan, "'logits' holds NaN or Inf"),
    ],
)
async def test_a_worker_with_a_wrong_answer_never_joins(tmp_path, change, words):
    fakes = [FakeTriton(), FakeTriton()]
    fakes[0].change = change
    async with cluster(tmp_path, "policy: none", fakes=fakes, up=1) as served:
        await works(served)
        assert await served.states() == ["starting", "up"]
        state = (await served.status()).workers[0].state
        assert "worker w0" in state
        assert re.search(words, state)


class Garbage(grpc.GenericRpcHandler):
    """Answers every call with bytes that are no message."""

    def service(self, _details):
        async def answer(_request, _context):
            return b"\xff\xff"

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_a_worker_that_answers_garbage_never_joins(tmp_path):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with FakeTriton() as good:
        workers = f"{worker_list('digits', [good])},127.0.0.1:{port}@w1"
        specs = str(write_spec(tmp_path))
        async with frontend(specs=specs, workers=workers) as served:
            await served.ready("digits")
            await works(served)
            state = (await served.status()).workers[1].state
            assert state == "starting: worker w1: its answer is not what the protocol says"
    await server.stop(None)


async def test_without_redundancy_a_wrong_answer_is_an_error_that_names_the_worker(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, canary_s=60.0) as served:
        served.workers[0].change = lambda logits: logits[:, :5]
        with pytest.raises(BadAnswer, match=r"worker w0: output 'logits': shape is \[1, 5\]"):
            await served.infer(request())


async def queued(served):
    return (await served.status()).queue_depth == 1


async def cancelled(served, count):
    return await served.metric("proa_failed_queries_total", status="CANCELLED") == count


async def test_a_full_queue_says_when_to_come_back(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, queue_max=1) as served:
        (worker,) = served.workers
        worker.pause()
        running = served.stub.ModelInfer(request())
        await eventually(lambda: worker.calls["deployed"] == 2)  # the first was the canary
        waiting = served.stub.ModelInfer(request())
        await until(lambda: queued(served))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.stub.ModelInfer(request())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "queue is full: 1 queries wait, which is the limit" in refused.value.details()
        trailers = dict(refused.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == int(trailers["grpc-retry-pushback-ms"]) > 0
        worker.resume()
        assert (await running).outputs
        assert (await waiting).outputs
        await works(served)


async def test_a_cancelled_query_is_withdrawn(tmp_path):
    async with cluster(tmp_path, "policy: hedge", workers=1) as served:
        (worker,) = served.workers
        worker.pause()
        running, waiting = (served.stub.ModelInfer(request()) for _ in range(2))
        await eventually(lambda: worker.calls["deployed"] == 2)
        await until(lambda: queued(served))
        for call in (waiting, running):
            call.cancel()
        await until(lambda: cancelled(served, 2))
        assert (await served.status()).queue_depth == 0
        worker.resume()
        await works(served)
        # The one that waited was never sent: canary, the one that had begun, the good one.
        assert worker.calls["deployed"] == 3


async def test_a_deadline_of_a_millisecond_is_kept(tmp_path):
    async with cluster(tmp_path, "policy: auto", workers=2, service_s=0.05) as served:
        with pytest.raises(DeadlinePassed):
            await served.infer(request(), timeout_s=0.001)
        with pytest.raises(DeadlinePassed, match="digits: the deadline has passed"):
            await served.infer(request(timeout=1000))
        await works(served)
        assert await served.states() == ["up", "up"]


async def test_without_a_worker_a_query_is_unavailable_at_its_deadline(tmp_path):
    worker = FakeTriton()
    worker.change = lambda logits: logits * np.nan
    async with cluster(tmp_path, "policy: auto", fakes=[worker], up=0) as served:
        with pytest.raises(Unavailable, match="digits: no worker is ready"):
            await served.infer(request(timeout=50_000))
        worker.change = None
        await served.ready("digits")
        await works(served)


async def test_what_a_worker_refuses_is_not_tried_elsewhere(tmp_path):
    async with cluster(tmp_path, "policy: retry", workers=2) as served:
        for worker in served.workers:
            worker.fail_next(1, "INVALID_ARGUMENT")
        with pytest.raises(InvalidRequest, match="told to fail"):
            await served.infer(request())
        assert sum(len(w._failures) for w in served.workers) == 1


@pytest.mark.parametrize("status", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"])
async def test_an_error_that_nothing_saves_keeps_its_status(tmp_path, status):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        served.workers[0].fail_next(1, status)
        with pytest.raises(ProaError) as raised:
            await served.infer(request(), timeout_s=5)
        assert raised.value.status == status
        assert "w0" in str(raised.value)
        await served.ready("digits")
        await works(served)
