"""The receiver on real sockets: OpenTelemetry's own exporters, and senders of garbage."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, format_span_id, format_trace_id

from fakes import stories
from proa.errors import SettingsError
from proa.telemetry.spans import Kind
from proa.traces import otlp
from proa.traces.receiver import HOST, SERVICE, Ports, receiving
from proa.traces.spans import Span

BODY = stories.message(stories.reconstructed()).SerializeToString()
PROTOBUF, JSON = "application/x-protobuf", "application/json"
ANY = Ports(0, 0)


class Received:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.ports = ANY

    async def post(
        self, body: bytes, kind: str = PROTOBUF, path: str = "/v1/traces", **headers: str
    ) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._post, body, kind, path, headers)

    def _post(
        self, body: bytes, kind: str, path: str, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=30)
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("POST", path, body, {"Content-Type": kind, **named})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
async def received() -> AsyncIterator[Received]:
    found = Received()
    async with receiving(ANY, found.spans.extend) as found.ports:
        yield found


def sdk_spans() -> Sequence[ReadableSpan]:
    """A call with a child that links to it, made by OpenTelemetry's SDK."""
    tracer = TracerProvider(resource=Resource({"service.name": "shop"})).get_tracer("test")
    call = tracer.start_span("call", kind=SpanKind.CLIENT, attributes={"n": 3, "s": "x", "b": True})
    child = tracer.start_span("child", links=[Link(call.get_span_context())])
    child.record_exception(ValueError("no"))
    for span in (child, call):
        span.end()
    assert isinstance(call, ReadableSpan)
    assert isinstance(child, ReadableSpan)
    return [call, child]


def check_sdk_spans(found: list[Span], sent: Sequence[ReadableSpan]) -> None:
    assert [span.name for span in found] == ["call", "child"]
    context = sent[0].get_span_context()
    assert context is not None
    key = format_trace_id(context.trace_id), format_span_id(context.span_id)
    assert found[0].key == key
    assert found[1].links == (key,)
    assert found[0].kind is Kind.CLIENT
    assert found[0].service == "shop"
    assert found[0].attributes == {"n": 3, "s": "x", "b": True}
    assert found[0].start_ns == sent[0].start_time
    assert [name for _, name in found[1].events] == ["exception"]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_the_sdks_http_exporter(received: Received, compression: Compression) -> None:
    url = f"http://{HOST}:{received.ports.http}/v1/traces"
    await exported(HttpExporter(endpoint=url, compression=compression), received)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_sdks_grpc_exporter(received: Received, compression: grpc.Compression) -> None:
    url = f"http://{HOST}:{received.ports.grpc}"
    await exported(GrpcExporter(endpoint=url, insecure=True, compression=compression), received)


async def exported(exporter: SpanExporter, received: Received) -> None:
    sent = sdk_spans()
    try:
        assert await asyncio.to_thread(exporter.export, sent) is SpanExportResult.SUCCESS
    finally:
        await asyncio.to_thread(exporter.shutdown)
    check_sdk_spans(received.spans, sent)


async def test_json(received: Received) -> None:
    body = json.dumps(stories.standard_json(stories.reconstructed())).encode()
    assert await received.post(body, f"{JSON}; charset=utf-8") == (200, b"{}")
    assert received.spans == stories.reconstructed()


@pytest.mark.parametrize(
    ("status", "body", "kind", "headers"),
    [
        (400, b"garbage", PROTOBUF, {}),
        (400, b"{", JSON, {}),
        (400, BODY, PROTOBUF, {"content_encoding": "gzip"}),
        (413, bytes(otlp.BODY_BYTES_MAX + 1), PROTOBUF, {}),
        (
            413,
            gzip.compress(bytes(otlp.BODY_BYTES_MAX + 1)),
            PROTOBUF,
            {"content_encoding": "gzip"},
        ),
        (415, BODY, "text/html", {}),
        (415, BODY, PROTOBUF, {"content_encoding": "br"}),
        (411, b"", PROTOBUF, {"content_length": "-1"}),
    ],
)
async def test_garbage_is_refused_and_the_next_one_is_not(
    received: Received, status: int, body: bytes, kind: str, headers: dict[str, str]
) -> None:
    assert (await received.post(body, kind, **headers))[0] == status
    assert received.spans == []
    assert await received.post(BODY) == (200, b"")
    assert len(received.spans) == len(stories.reconstructed())


async def test_other_paths_are_not_here(received: Received) -> None:
    for path in ("/", "/v1/metrics", "/v1/traces/x", "/" + "y" * 10_000):
        assert (await received.post(BODY, path=path))[0] == 404
    assert (await received.post(BODY, path="/v1/traces?x=1"))[0] == 200


async def test_senders_that_hang_up_or_say_nothing_keep_nobody_waiting(received: Received) -> None:
    silent = [socket.create_connection((HOST, received.ports.http)) for _ in range(8)]
    half = socket.create_connection((HOST, received.ports.http))
    half.sendall(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 99\r\n\r\nab")
    half.close()
    try:
        assert (await received.post(BODY))[0] == 200
    finally:
        for one in silent:
            one.close()


async def test_garbage_over_grpc(received: Received) -> None:
    async with grpc.aio.insecure_channel(f"{HOST}:{received.ports.grpc}") as channel:
        export = channel.unary_unary(f"/{SERVICE}/Export")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await export(b"\xff" * 40, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await export(bytes(otlp.BODY_BYTES_MAX + 1), timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await export(BODY, timeout=30) == b""
    assert received.spans == stories.reconstructed()


async def test_a_taken_port_names_its_option(received: Received) -> None:
    with pytest.raises(SettingsError, match=rf"--port {received.ports.http}: cannot listen"):
        async with receiving(Ports(received.ports.http, 0), received.spans.extend):
            pass
    with pytest.raises(SettingsError, match=rf"--grpc-port {received.ports.grpc}: cannot listen"):
        async with receiving(Ports(0, received.ports.grpc), received.spans.extend):
            pass
