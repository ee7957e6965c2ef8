"""The decoder process, composed as in production."""

from __future__ import annotations

import asyncio
import urllib.request

import numpy as np
import pytest

from proa import rpc, wire
from proa.api.v1 import decoder_pb2, decoder_pb2_grpc, faults_pb2, faults_pb2_grpc, tensor_pb2
from proa.codes import make_code
from proa.decoder import service
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.errors import InvalidRequest, NotSupported, ProaError, TooManyErasures, Unavailable


class Peer:
    """A running decoder and a channel to it."""

    async def start(self, **settings):
        listening = asyncio.get_running_loop().create_future()
        fields = {"host": "127.0.0.1", "port": 0, "admin_port": 0, "grace_s": 0.2, **settings}
        self.task = asyncio.create_task(
            serve_decoder(DecoderSettings(**fields), listening=listening)
        )
        await asyncio.wait([listening, self.task], return_when=asyncio.FIRST_COMPLETED)
        self.port, self.admin_port = listening.result()
        self.channel = rpc.connect(f"127.0.0.1:{self.port}", message_bytes_max=64 << 20)
        self.stub = decoder_pb2_grpc.DecoderStub(self.channel)
        return self

    async def stop(self):
        await self.channel.close(None)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def decode(self, request):
        async with rpc.peer_errors("decoder"):
            return await self.stub.Decode(request, timeout=20, wait_for_ready=True)


@pytest.fixture
async def decoder():
    peer = await Peer().start(faults=True)
    yield peer
    await peer.stop()


def prediction(position, array, name="y"):
    return decoder_pb2.Prediction(position=position, outputs=[wire.to_tensor(name, array)])


def group(k=3, r=2, missing=(0, 2), *, size=10, seed=1, **changes):
    """A request whose answer is known: (request, predictions)."""
    rng = np.random.default_rng(seed)
    code = make_code("sum", k, r)
    answers = [rng.normal(size=(2, size)).astype(np.float32) for _ in range(k)]
    fields = {
        "model": "digits",
        "code": tensor_pb2.Code(coder="sum", k=k, r=r),
        "available": [prediction(i, y) for i, y in enumerate(answers) if i not in missing],
        "parity": [prediction(j, code.encode(answers, j)) for j in range(r)],
        "missing": missing,
    }
    return decoder_pb2.DecodeRequest(**{**fields, **changes}), answers


@pytest.mark.parametrize("size", [10, 200_000])
async def test_missing_predictions_are_reconstructed(decoder, size):
    request, answers = group(missing=(2, 0), size=size)
    response = await decoder.decode(request)
    assert [one.position for one in response.reconstructed] == [2, 0]
    for one in response.reconstructed:
        found = wire.from_tensors(one.outputs, "answer")["y"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, answers[one.position], rtol=1e-3, atol=1e-4)


X = np.zeros((2, 10), np.float32)
BAD = [
    ({"missing": []}, InvalidRequest, "nothing to reconstruct"),
    ({"missing": [0]}, InvalidRequest, "do not make a group of 3"),
    ({"parity": [prediction(0, X)]}, TooManyErasures, "2 predictions are missing and 1"),
    ({"parity": [prediction(0, X)] * 2}, InvalidRequest, "parity row 0: one of 0 to 1"),
    ({"parity": [prediction(2, X)] * 2}, InvalidRequest, "parity row 2: one of 0 to 1"),
    ({"parity": [prediction(0, X)] * 3}, InvalidRequest, "3 parity rows; the code has 2"),
    ({"available": [prediction(3, X)]}, InvalidRequest, "prediction 3: one of 0 to 2"),
    ({"available": [decoder_pb2.Prediction(position=1)]}, InvalidRequest, "has no tensors"),
    ({"available": [prediction(1, X, "z")]}, ProaError, "prediction 1 has"),
    ({"available": [prediction(1, X[:1])]}, ProaError, "shape"),
    ({"available": [prediction(1, X + np.nan)]}, ProaError, "NaN or Inf"),
    ({"missing": [0, 0]}, ProaError, "must be the"),
    ({"missing": [0, 7]}, ProaError, "must be the"),
    ({"code": tensor_pb2.Code(coder="sum", k=99, r=2)}, ProaError, "k 99"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
async def test_a_bad_request_names_the_field(decoder, changes, error, message):
    request, _ = group(**changes) if "missing" not in changes else (group()[0], None)
    if "missing" in changes:
        request.ClearField("missing")
        request.missing.extend(changes["missing"])
    with pytest.raises(error, match=message) as caught:
        await decoder.decode(request)
    assert caught.value.status in ("INVALID_ARGUMENT", "DATA_LOSS")


async def test_the_self_check_knows_a_group():
    await service.self_check()


async def test_metrics_and_readiness(decoder):
    await decoder.decode(group()[0])
    with pytest.raises(InvalidRequest):
        await decoder.decode(decoder_pb2.DecodeRequest())

    def get(path):
        url = f"http://127.0.0.1:{decoder.admin_port}{path}"
        return urllib.request.urlopen(url, timeout=5).read().decode()

    text = await asyncio.to_thread(get, "/metrics")
    assert 'proa_decoder_calls_total{status="OK"} 1.0' in text
    assert 'proa_decoder_calls_total{status="INVALID_ARGUMENT"} 1.0' in text
    assert "proa_decoder_decode_seconds_count 1.0" in text
    assert await asyncio.to_thread(get, "/readyz") == "ok\n"


async def test_faults_act_on_calls(decoder):
    faults = faults_pb2_grpc.FaultInjectorStub(decoder.channel)
    fault = faults_pb2.Fault(id="e", kind=faults_pb2.ERROR, ttl_ms=60_000, program="Decode")
    await faults.Inject(faults_pb2.InjectRequest(fault=fault), timeout=10)
    with pytest.raises(Unavailable, match="injected fault e"):
        await decoder.decode(group()[0])
    await faults.Clear(faults_pb2.ClearRequest(), timeout=10)
    await decoder.decode(group()[0])
    fault.kind = faults_pb2.BITFLIP
    with pytest.raises(NotSupported, match="BITFLIP acts on workers"):
        await inject(faults, fault)


async def inject(faults, fault):
    async with rpc.peer_errors("faults"):
        await faults.Inject(faults_pb2.InjectRequest(fault=fault), timeout=10)
