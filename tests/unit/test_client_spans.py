"""The spans of the SDK, in programs with OpenTelemetry and in those without."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

import numpy as np
import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from fakes.oip_fake import OVERLOAD, RECONSTRUCT, FakeServer, serving
from proa.client import AsyncClient, Client, Overloaded
from proa.telemetry import parse

QUERY = {"x": np.ones((1, 2), np.float32)}


class Server(FakeServer):
    """Keeps the metadata of inferences."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: list[Any] = []

    async def ModelInfer(self, request, context):
        self.metadata.append(tuple(context.invocation_metadata()))
        return await super().ModelInfer(request, context)

    async def ModelStreamInfer(self, requests, context):
        self.metadata.append(tuple(context.invocation_metadata()))
        async for reply in super().ModelStreamInfer(requests, context):
            yield reply


@pytest.fixture
async def fake():
    async with serving(Server()) as server:
        yield server


@pytest.fixture(params=["async", "sync"])
def client(request, fake):
    """infer and infer_many of one client, as coroutines; it has a token."""
    return Both(request.param, fake.address)


class Both:
    def __init__(self, kind, address):
        self.kind, self.address = kind, address

    async def __call__(self, method, *args):
        if self.kind == "async":
            async with AsyncClient(self.address, deadline_s=20, token="t") as client:
                return await getattr(client, method)(*args)

        def call():
            with Client(self.address, deadline_s=20, token="t") as client:
                return getattr(client, method)(*args)

        return await asyncio.to_thread(call)


@contextlib.contextmanager
def configured(monkeypatch, **options):
    """As an application that called set_tracer_provider, which cannot be undone."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(**options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    yield provider.get_tracer("app"), exporter
    provider.shutdown()


async def test_an_inference_is_a_child_of_the_program_s_span(client, fake, monkeypatch):
    with configured(monkeypatch) as (tracer, exporter):
        with tracer.start_as_current_span("work") as work:
            query = {"x": np.array([[RECONSTRUCT, 1]], np.float32)}
            answer = await client("infer", "double", query)
        call, _work = exporter.get_finished_spans()
    assert (call.name, call.kind) == ("inference.GRPCInferenceService/ModelInfer", SpanKind.CLIENT)
    assert call.parent.span_id == work.get_span_context().span_id
    assert call.attributes["proa.model"] == "double"
    assert call.attributes["proa.source"] == answer.source == "reconstructed"
    assert call.attributes["rpc.response.status_code"] == "OK"
    (metadata,) = fake.metadata
    told = parse(metadata)
    assert (told.trace_id, told.span_id) == (call.context.trace_id, call.context.span_id)
    assert told.sampled
    assert ("authorization", "Bearer t") in metadata


async def test_a_stream_is_one_span(client, fake, monkeypatch):
    with configured(monkeypatch) as (_tracer, exporter):
        await client("infer_many", "double", [QUERY] * 3)
        (call,) = exporter.get_finished_spans()
    assert call.name == "inference.GRPCInferenceService/ModelStreamInfer"
    (metadata,) = fake.metadata
    assert parse(metadata).span_id == call.context.span_id


async def test_a_failed_call_says_how(client, fake, monkeypatch):
    with configured(monkeypatch) as (_tracer, exporter):
        with pytest.raises(Overloaded):
            await client("infer", "double", {"x": np.array([[OVERLOAD, 1]], np.float32)})
        (call,) = exporter.get_finished_spans()
    assert not call.status.is_ok
    assert call.attributes["rpc.response.status_code"] == "RESOURCE_EXHAUSTED"
    assert call.attributes["error.type"] == "RESOURCE_EXHAUSTED"


async def test_the_program_s_decision_not_to_sample_is_passed_on(client, fake, monkeypatch):
    """Otherwise the frontend would decide anew."""
    with configured(monkeypatch, sampler=ALWAYS_OFF) as (_tracer, exporter):
        await client("infer", "double", QUERY)
        assert exporter.get_finished_spans() == ()
    assert parse(fake.metadata[0]).sampled is False


async def test_without_a_provider_nothing_is_sent(client, fake, monkeypatch):
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", None)
    await client("infer", "double", QUERY)
    assert parse(fake.metadata[0]) is None


def test_the_sdk_does_not_import_opentelemetry():
    check = "import sys, proa.client; print([m for m in sys.modules if m.startswith('opentele')])"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60
    )
    assert found.stdout.strip() == "[]", found.stderr
