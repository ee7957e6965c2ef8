"""`proa up --trace`, everything real: what a collector is told of a request, from the application
down to the computation in Triton."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

import numpy as np
import opentelemetry.trace
import pytest
import pytest_asyncio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from fakes.collector import Collector
from fakes.programs import INPUT, write_tiny_spec
from proa.client import AsyncClient

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

INFER = "inference.GRPCInferenceService/ModelInfer"
QUERY = np.ones((1, *INPUT.shape), np.float32)


@pytest.fixture(scope="module")
def collector():
    with Collector() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory, collector):
    """Of a frontend whose model is encoded and decoded in pods of their own, with three workers."""
    folder = tmp_path_factory.mktemp("tracing")
    up = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proa", "up", str(write_tiny_spec(folder)), "--json",
        "--trace", collector.http_endpoint.removeprefix("http://"), "--workers", "3",
        "--run-dir", str(folder / "run"), "--port", "0", "--admin-port", "0", stdout=PIPE,
    )  # fmt: skip
    try:
        assert up.stdout is not None
        line = await asyncio.wait_for(up.stdout.readline(), 120)
        assert line, "proa up ended"
        yield json.loads(line)["address"]
        up.terminate()
        assert await asyncio.wait_for(up.wait(), 60) == 0
    finally:
        if up.returncode is None:
            up.kill()
            await up.wait()


@pytest.fixture
def tracer(collector, monkeypatch):
    """Of an application that traces, to the same collector."""
    provider = TracerProvider(resource=Resource({"service.name": "app"}))
    endpoint = f"{collector.http_endpoint}/v1/traces"
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    yield provider.get_tracer("app")
    provider.shutdown()


def line_of(spans, span):
    """`span` and all above it in its trace, topmost first."""
    by_id = {one.span_id: one for one in spans if one.trace_id == span.trace_id}
    found = [span]
    while found[0].parent_id in by_id:
        found.insert(0, by_id[found[0].parent_id])
    return found


def computed(program):
    """A predicate: the lines of all computations of `program` whose tops are known."""

    def lines(spans):
        found = [
            line_of(spans, span)
            for span in spans
            if span.name == "proa.compute" and span.attributes["proa.program"] == program
        ]
        return [line for line in found if not line[0].parent_id]

    return lines


async def test_one_trace_from_the_application_to_the_computation(address, collector, tracer):
    async with AsyncClient(address, deadline_s=20.0) as client:
        with tracer.start_as_current_span("work"):
            await client.infer("tiny", {"image": QUERY})

    def whole(spans):
        return [line for line in computed("deployed")(spans) if line[0].name == "work"]

    (line,) = await collector.wait(whole)
    steps = [(span.service, span.kind, span.name) for span in line]
    assert steps[:4] == [
        ("app", "INTERNAL", "work"),
        ("app", "CLIENT", INFER),
        ("proa-frontend", "SERVER", INFER),
        ("proa-frontend", "CLIENT", INFER),
    ]
    # Two of Triton's own, and ours below them (its `compute` is a sister).
    assert [span.service for span in line[4:]] == ["proa-worker"] * (len(line) - 4)
    assert [span.name for span in line[4:]] == ["InferRequest", "tiny", "proa.compute"]
    assert line[-1].attributes["proa.batch"] == 1
    assert line[3].attributes["server.port"] in range(1, 65_536)
    assert line[0].start_ns <= line[-1].start_ns <= line[-1].end_ns <= line[0].end_ns


async def test_the_story_of_a_reconstruction(address, collector):
    """Two queries that ask for a drill: their group is encoded, computed and decoded elsewhere."""
    async with AsyncClient(address, deadline_s=20.0) as client:
        answers = [None]
        while not any(answer and answer.reconstructed for answer in answers):
            drills = (client.infer("tiny", {"image": QUERY}, reconstruct=True) for _ in range(2))
            answers = await asyncio.gather(*drills)

    def decoded(spans):
        decodes = [span for span in spans if span.name == "proa.api.v1.Decoder/Decode"]
        return [span for span in decodes if span.service == "proa-decoder"]

    (server, *_) = await collector.wait(decoded)

    def told(spans):
        line = line_of(spans, server)
        return None if line[0].parent_id else line

    line = await collector.wait(told)
    assert [(span.service, span.kind) for span in line[:2]] == [
        ("proa-frontend", "SERVER"),
        ("proa-frontend", "INTERNAL"),
    ]
    assert [span.name for span in line] == [
        INFER, "proa.decode", "proa.api.v1.Decoder/Decode", "proa.api.v1.Decoder/Decode",
    ]  # fmt: skip
    decode = line[1]
    assert decode.attributes["proa.placement"] == "pod"
    linked = {link.trace_id for link in decode.links}
    assert linked, "of the parity span that was used"

    def parity(spans):
        return [line for line in computed("parity.0")(spans) if line[0].trace_id in linked]

    ((root, *below), *_) = await collector.wait(parity)
    assert root.name == "proa.parity"
    assert [(span.service, span.name) for span in below] == [
        ("proa-frontend", "proa.api.v1.Encoder/InferParity"),
        ("proa-encoder", "proa.api.v1.Encoder/InferParity"),
        ("proa-encoder", "proa.infer"),
        ("proa-worker", "InferRequest"),
        ("proa-worker", "tiny"),
        ("proa-worker", "proa.compute"),
    ]
    assert line[0].trace_id in {link.trace_id for link in root.links}
