"""The spans of encoder and decoder, composed as in production, as a collector sees them."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from fakes.collector import Collector
from fakes.triton_fake import FakeTriton, images
from proa import rpc, wire
from proa.api.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, tensor_pb2
from proa.codes import make_code
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.encoder.main import serve_encoder
from proa.encoder.settings import EncoderSettings
from proa.errors import SettingsError, Unavailable
from proa.telemetry import new_context, parse, to_metadata

PORTS = {"host": "127.0.0.1", "port": 0, "admin_port": 0, "grace_s": 0.2}


class Worker(FakeTriton):
    """Keeps the metadata of the calls it got."""

    def __init__(self, **knobs):
        super().__init__(**knobs)
        self.metadata = []

    async def ModelInfer(self, request, context):
        self.metadata.append(tuple(context.invocation_metadata()))
        return await super().ModelInfer(request, context)


@contextlib.asynccontextmanager
async def running(serve, settings, environ):
    """A channel to the service that `serve` runs."""
    listening = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings(**PORTS), environ=environ, listening=listening))
    try:
        await asyncio.wait([listening, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        async with rpc.connect(
            f"127.0.0.1:{listening.result()[0]}", message_bytes_max=1 << 20
        ) as channel:
            yield channel
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def infer_parity(channel, worker, metadata):
    request = encoder_pb2.InferParityRequest(
        model="digits",
        code=tensor_pb2.Code(coder="sum", k=2, r=1),
        members=[encoder_pb2.Query(inputs=[wire.to_tensor("image", x)]) for x in images(2)],
        outputs=["logits"],
        worker=worker.address,
    )
    async with rpc.peer_errors("encoder"):
        return await encoder_pb2_grpc.EncoderStub(channel).InferParity(
            request, timeout=20, wait_for_ready=True, metadata=metadata
        )


async def test_the_story_of_a_parity_query():
    """Server span, its steps, and the worker is called as the child of the second."""
    caller = new_context(sampled=True)
    with Collector() as collector:
        async with (
            Worker() as worker,
            running(serve_encoder, EncoderSettings, collector.environ()) as channel,
        ):
            await infer_parity(channel, worker, ())
            await infer_parity(channel, worker, to_metadata(new_context(sampled=False)))
            await infer_parity(channel, worker, to_metadata(caller))
        by_name = {span.name: span for span in collector.spans}
        assert len(collector.spans) == 3  # nothing of the calls that are not sampled
    server = by_name["proa.api.v1.Encoder/InferParity"]
    encode, infer = by_name["proa.encode"], by_name["proa.infer"]
    assert (server.parent_id, server.kind) == (caller.span_hex, "SERVER")
    assert encode.parent_id == infer.parent_id == server.span_id
    assert {span.trace_id for span in by_name.values()} == {caller.trace_hex}
    assert {span.service for span in by_name.values()} == {"proa-encoder"}
    assert (encode.attributes["proa.k"], encode.attributes["proa.row"]) == (2, 0)
    assert (infer.kind, infer.attributes["server.port"]) == ("CLIENT", worker.port)
    untraced, unsampled, traced = [parse(metadata) for metadata in worker.metadata]
    assert untraced is None
    assert unsampled is None  # Triton would trace it, whatever the flag says
    assert (traced.span_hex, traced.sampled) == (infer.span_id, True)


async def test_a_worker_that_fails_is_seen():
    with Collector() as collector:
        async with (
            Worker() as worker,
            running(serve_encoder, EncoderSettings, collector.environ()) as channel,
        ):
            worker.fail_next(1, "UNAVAILABLE")
            with pytest.raises(Unavailable):
                await infer_parity(channel, worker, to_metadata(new_context(sampled=True)))
        spans = {span.name: span for span in collector.spans}
    assert spans["proa.infer"].status == "ERROR"
    assert spans["proa.encode"].status == "UNSET"
    server = spans["proa.api.v1.Encoder/InferParity"]
    assert server.attributes["rpc.response.status_code"] == "UNAVAILABLE"


async def test_a_decoder_s_span():
    caller = new_context(sampled=True)
    code = make_code("sum", 2, 1)
    answers = [np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)]

    def prediction(position, array):
        return decoder_pb2.Prediction(position=position, outputs=[wire.to_tensor("y", array)])

    request = decoder_pb2.DecodeRequest(
        code=tensor_pb2.Code(coder="sum", k=2, r=1),
        available=[prediction(0, answers[0])],
        parity=[prediction(0, code.encode(answers, 0))],
        missing=[1],
    )
    with Collector() as collector:
        async with running(serve_decoder, DecoderSettings, collector.environ()) as channel:
            await decoder_pb2_grpc.DecoderStub(channel).Decode(
                request, timeout=20, wait_for_ready=True, metadata=to_metadata(caller)
            )
        (server,) = collector.spans
    assert (server.name, server.service) == ("proa.api.v1.Decoder/Decode", "proa-decoder")
    assert (server.trace_id, server.parent_id) == (caller.trace_hex, caller.span_hex)


@pytest.mark.parametrize("serve", [serve_encoder, serve_decoder])
async def test_a_wrong_setting_stops_the_start(serve):
    settings = EncoderSettings if serve is serve_encoder else DecoderSettings
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        await serve(settings(**PORTS), environ=environ)
