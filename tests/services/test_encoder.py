"""The encoder process, composed as in production, against the fake worker."""

from __future__ import annotations

import asyncio
import urllib.request

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images, linear
from proa import rpc, wire
from proa.api.v1 import encoder_pb2, encoder_pb2_grpc, faults_pb2, faults_pb2_grpc, tensor_pb2
from proa.codes import make_code
from proa.encoder import service
from proa.encoder.main import serve_encoder
from proa.encoder.settings import EncoderSettings
from proa.errors import (
    BadAnswer,
    DeadlinePassed,
    InvalidRequest,
    NotSupported,
    Overloaded,
    ProaError,
    Unavailable,
)
from proa.parity import decode_outputs

MESSAGE_BYTES_MAX = 1 << 20
SETTINGS = {
    "host": "127.0.0.1",
    "port": 0,
    "admin_port": 0,
    "message_bytes_max": MESSAGE_BYTES_MAX,
    "calls_max": 2,
    "deadline_s_max": 5.0,
    "workers_max": 2,
    "grace_s": 0.2,
}


class Peer:
    """A running encoder and a channel to it."""

    async def start(self, **settings):
        listening = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(
            serve_encoder(EncoderSettings(**{**SETTINGS, **settings}), listening=listening)
        )
        await asyncio.wait([listening, self.task], return_when=asyncio.FIRST_COMPLETED)
        self.port, self.admin_port = listening.result()
        self.channel = rpc.connect(f"127.0.0.1:{self.port}", message_bytes_max=4 << 20)
        self.stub = encoder_pb2_grpc.EncoderStub(self.channel)
        self.faults = faults_pb2_grpc.FaultInjectorStub(self.channel)
        return self

    async def stop(self):
        await self.channel.close(None)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def infer(self, request, timeout_s=10.0):
        async with rpc.peer_errors("encoder"):
            return await self.stub.InferParity(request, timeout=timeout_s, wait_for_ready=True)

    async def inject(self, **fault):
        async with rpc.peer_errors("faults"):
            request = faults_pb2.InjectRequest(fault=faults_pb2.Fault(**fault))
            return await self.faults.Inject(request, timeout=10, wait_for_ready=True)

    async def metrics(self):
        url = f"http://127.0.0.1:{self.admin_port}/metrics"

        def get():
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()

        return await asyncio.to_thread(get)


@pytest.fixture
async def worker():
    async with FakeTriton() as worker:
        yield worker


@pytest.fixture
async def encoder():
    peer = await Peer().start(faults=True)
    yield peer
    await peer.stop()


def group(worker_, queries, **changes):
    """A valid request for the sum code over `queries`, with `changes`."""
    fields = {
        "model": "digits",
        "package": "fa4e",
        "group": 7,
        "code": tensor_pb2.Code(coder="sum", k=len(queries), r=1),
        "members": [
            encoder_pb2.Query(inputs=[wire.to_tensor("image", query)]) for query in queries
        ],
        "outputs": ["logits"],
        "worker": worker_.address,
    }
    return encoder_pb2.InferParityRequest(**{**fields, **changes})


async def test_what_is_encoded_decodes(worker, encoder):
    queries = images(4, batch=3)
    response = await encoder.infer(group(worker, queries))
    outputs = wire.from_tensors(response.outputs, "answer")
    have = {i: {"logits": linear(query)} for i, query in enumerate(queries) if i != 2}
    found = decode_outputs(make_code("sum", 4, 1), have, {0: outputs}, [2])[2]["logits"]
    np.testing.assert_allclose(found, linear(queries[2]), rtol=1e-3, atol=1e-4)
    assert 0 < response.encode_seconds < 5
    assert 0 < response.infer_seconds < 5
    assert worker.computed == {"parity.0": 1}


TWO = images(2)
BAD = {
    "worker": [
        {"worker": "unix:/tmp/x"},
        {"worker": ""},
        {"worker": "127.0.0.1"},
        {"worker": "http://127.0.0.1:80"},
    ],
    "a name has 1 to 256": [{"model": ""}, {"model": "m" * 257}],
    "coder": [{"code": tensor_pb2.Code(coder="magic", k=2, r=1)}],
    "k 17": [{"code": tensor_pb2.Code(coder="sum", k=17, r=1)}],
    "r 0": [{"code": tensor_pb2.Code(coder="sum", k=2)}],
    "2 members for a group of 3": [{"code": tensor_pb2.Code(coder="sum", k=3, r=1)}],
    "row 1": [{"row": 1}],
    "outputs": [
        {"outputs": []},
        {"outputs": ["a", "a"]},
        {"outputs": [""]},
        {"outputs": [str(i) for i in range(65)]},
    ],
    "no tensors": [{"members": [encoder_pb2.Query(), encoder_pb2.Query()]}],
    "takes 8 bytes": [
        {
            "members": [
                encoder_pb2.Query(
                    inputs=[tensor_pb2.Tensor(name="x", datatype="FP32", shape=[2], contents=b"a")]
                )
            ]
            * 2
        }
    ],
    "has dtype object": [
        {
            "members": [encoder_pb2.Query(inputs=[wire.to_tensor("x", np.array([[b"a"]], object))])]
            * 2
        }
    ],
    "query 0 holds NaN": [
        {"members": [encoder_pb2.Query(inputs=[wire.to_tensor("x", np.full((1, 1), np.nan))])] * 2}
    ],
}


@pytest.mark.parametrize(
    ("changes", "message"), [(one, message) for message, many in BAD.items() for one in many]
)
async def test_a_bad_request_names_the_field(worker, changes, message):
    """`read_group` and the encoding behind it; the wire is tested below."""
    request = group(worker, TWO, **changes)
    with pytest.raises(ProaError) as caught:
        service.encode_members(*service.read_group(request), request.row)
    assert caught.value.status == "INVALID_ARGUMENT"
    assert ("is not host:port" if message == "worker" else message) in str(caught.value)


async def test_refusals_cross_the_wire(worker, encoder):
    with pytest.raises(InvalidRequest, match="2 members for a group of 4"):
        await encoder.infer(group(worker, TWO, code=tensor_pb2.Code(coder="sum", k=4, r=1)))
    assert not worker.calls


async def test_a_message_above_the_limit_is_refused(worker, encoder):
    with pytest.raises(InvalidRequest, match="larger than max"):
        await encoder.infer(group(worker, TWO, package="x" * MESSAGE_BYTES_MAX))


async def test_what_the_worker_says_is_passed_on(worker, encoder):
    worker.fail_next(1, "UNAVAILABLE")
    with pytest.raises(Unavailable, match="told to fail"):
        await encoder.infer(group(worker, TWO))
    worker.change = lambda answer: answer[:, :0, None].squeeze(0)
    with pytest.raises(BadAnswer, match="has shape"):
        await encoder.infer(group(worker, TWO))


async def test_the_callers_deadline_reaches_the_worker(worker, encoder):
    worker.pause()
    with pytest.raises(DeadlinePassed):
        await encoder.infer(group(worker, TWO), timeout_s=0.2)
    await eventually(lambda: worker.cancelled == 1)


async def test_a_caller_without_a_deadline_is_bounded(worker):
    encoder = await Peer().start(deadline_s_max=0.1)
    worker.pause()
    with pytest.raises(DeadlinePassed, match="worker"):
        await encoder.infer(group(worker, TWO), timeout_s=None)
    await encoder.stop()


async def test_calls_at_once_are_bounded(worker, encoder):
    worker.pause()
    calls = [asyncio.ensure_future(encoder.infer(group(worker, TWO))) for _ in range(2)]
    await eventually(lambda: worker.calls.total() == 2)
    with pytest.raises(Overloaded, match="2 calls are being worked on"):
        await encoder.infer(group(worker, TWO))
    worker.resume()
    await asyncio.gather(*calls)
    await encoder.infer(group(worker, TWO))
    text = await encoder.metrics()
    assert 'proa_encoder_calls_total{status="OK"} 3.0' in text
    assert 'proa_encoder_calls_total{status="RESOURCE_EXHAUSTED"} 1.0' in text
    assert "proa_encoder_calls_inflight 0.0" in text
    assert "proa_encoder_encode_seconds_count 3.0" in text
    assert "proa_encoder_infer_seconds_count 3.0" in text


async def test_health_reflection_and_readiness(encoder):
    stub = health_pb2_grpc.HealthStub(encoder.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
    while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
        pass
    watch.cancel()

    def get(path):
        return urllib.request.urlopen(
            f"http://127.0.0.1:{encoder.admin_port}{path}", timeout=5
        ).read()

    assert await asyncio.to_thread(get, "/readyz") == b"ok\n"
    assert await asyncio.to_thread(get, "/livez") == b"ok\n"


async def test_the_self_check_knows_a_group():
    await service.self_check()


async def test_reflection_lists_the_services(encoder):
    def services():
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{encoder.port}") as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert await asyncio.to_thread(services) == {
        "proa.api.v1.Encoder",
        "proa.api.v1.FaultInjector",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_there_is_no_fault_service_unless_asked_for():
    encoder = await Peer().start()
    with pytest.raises(NotSupported):
        await encoder.inject(id="a", kind=faults_pb2.ERROR, ttl_ms=1000)
    await encoder.stop()
