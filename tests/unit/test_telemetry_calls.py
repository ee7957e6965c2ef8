"""Tracing of a service: its settings, SERVER spans of gRPC calls, steps in them, the counter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fakes.collector import Collector
from fakes.eventually import eventually
from proa.errors import InvalidRequest, SettingsError, Unavailable
from proa.rpc import servicer_errors
from proa.runtime.tracing import TracingInterceptor, open_tracing, step
from proa.telemetry import (
    Kind,
    SpanRecord,
    TraceContext,
    Tracing,
    current,
    new_context,
    to_metadata,
)

SERVICE = "proa.test.v1.Echo"
METHOD = f"{SERVICE}/Say"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
PARENT = TraceContext(0xA, 0xB, True, "v=1")


class Kept(Tracing):
    """Keeps the records in the order they came."""

    def __init__(self) -> None:
        super().__init__(self)  # type: ignore[arg-type]
        self.records: list[SpanRecord] = []

    def emit(self, *records: SpanRecord) -> None:
        self.records += records

    def export(self, records: Sequence[SpanRecord]) -> str | None:
        raise AssertionError(records)

    def close(self, timeout_s: float = 2.0) -> None:
        if not self._closing:
            super().close(timeout_s)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proa.telemetry.tracing.DELAY_S", 0.01)


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


@asynccontextmanager
async def serving(
    tracing: Tracing, say: Callable[[Any, bytes, Any], Awaitable[bytes]]
) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable]:
    """Calls of METHOD on a server that answers as `say` does."""

    async def handler(request: bytes, context: Any) -> bytes:
        return await say(None, request, context)

    server = grpc.aio.server(interceptors=[TracingInterceptor(tracing, SERVICE)])
    for name in (SERVICE, "other.Service"):
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    name, {"Say": grpc.unary_unary_rpc_method_handler(handler)}
                ),
            )
        )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield lambda *args, method=METHOD, **kwargs: channel.unary_unary(f"/{method}")(
                *args, timeout=20, **kwargs
            )
    finally:
        await server.stop(None)


async def test_a_sampled_call_becomes_a_span_and_its_steps_children(kept: Kept) -> None:
    @servicer_errors
    async def say(_self: None, request: bytes, _context: Any) -> bytes:
        with step(kept, "proa.encode", **{"proa.k": 4}) as record:
            assert record is not None
            record.attributes["proa.rows"] = 1
            with step(kept, "proa.infer", kind=Kind.CLIENT):
                await asyncio.sleep(0)
            assert current.get() == record.context
        return request

    async with serving(kept, say) as call:
        assert await call(b"hi", metadata=to_metadata(PARENT)) == b"hi"
    inner, middle, server = kept.records
    assert (server.name, server.kind, server.parent) == (METHOD, Kind.SERVER, PARENT.span_id)
    assert server.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
    }
    assert server.error is None
    assert (middle.name, middle.kind) == ("proa.encode", Kind.INTERNAL)
    assert middle.attributes == {"proa.k": 4, "proa.rows": 1}
    assert (inner.name, inner.kind) == ("proa.infer", Kind.CLIENT)
    assert middle.parent == server.context.span_id
    assert inner.parent == middle.context.span_id
    assert {(one.context.trace_id, one.context.state) for one in kept.records} == {(0xA, "v=1")}
    assert server.start_ns <= middle.start_ns <= inner.start_ns
    assert 0 < inner.end_ns <= middle.end_ns <= server.end_ns
    assert current.get() is None


@pytest.mark.parametrize(
    ("method", "metadata"),
    [
        (METHOD, ()),
        (METHOD, to_metadata(new_context(sampled=False))),
        (METHOD, (("traceparent", "00-nonsense"),)),
        ("other.Service/Say", to_metadata(PARENT)),
    ],
)
async def test_other_calls_leave_no_span(kept: Kept, method: str, metadata: Any) -> None:
    async def say(_self: None, request: bytes, _context: Any) -> bytes:
        assert current.get() is None
        with step(kept, "proa.encode") as record:
            assert record is None
        return request

    async with serving(kept, say) as call:
        assert await call(b"hi", metadata=metadata, method=method) == b"hi"
    assert kept.records == []


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (Unavailable("worker 3 is gone"), "UNAVAILABLE", "worker 3 is gone"),
        (InvalidRequest("rank 2"), "INVALID_ARGUMENT", None),  # the caller's doing
        (ValueError("a bug"), "INTERNAL", "internal error"),
    ],
)
async def test_how_a_call_failed(
    kept: Kept, raised: Exception, code: str, message: str | None
) -> None:
    @servicer_errors
    async def say(_self: None, _request: bytes, _context: Any) -> bytes:
        with step(kept, "proa.decode"):
            raise raised

    async with serving(kept, say) as call:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"hi", metadata=to_metadata(PARENT))
    assert caught.value.code().name == code
    await eventually(lambda: len(kept.records) == 2)  # the caller knows before the call has ended
    inside, server = kept.records
    assert server.attributes["rpc.response.status_code"] == code
    assert server.attributes["error.type"] == code
    assert server.error == message
    assert inside.error == str(raised)
    assert inside.attributes["error.type"] == type(raised).__name__


async def test_what_a_handler_raises_past_us_is_unknown(kept: Kept) -> None:
    async def say(_self: None, _request: bytes, _context: Any) -> bytes:
        raise ValueError("a bug")

    async with serving(kept, say) as call:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"hi", metadata=to_metadata(PARENT))
    (server,) = kept.records
    assert server.error == "UNKNOWN"


async def test_a_call_given_up_is_cancelled(kept: Kept) -> None:
    began = asyncio.Event()

    async def say(_self: None, _request: bytes, _context: Any) -> bytes:
        began.set()
        await asyncio.Event().wait()
        return b""

    async with serving(kept, say) as call:
        pending = call(b"hi", metadata=to_metadata(PARENT))
        await began.wait()
        pending.cancel()
        await eventually(lambda: kept.records)
    (server,) = kept.records
    assert server.attributes["rpc.response.status_code"] == "CANCELLED"
    assert server.error is None
    assert server.end_ns >= server.start_ns


def test_a_step_outside_of_sampled_calls_or_without_tracing_is_nothing(kept: Kept) -> None:
    with step(kept, "a") as record:
        assert record is None
    token = current.set(new_context(sampled=False))
    with step(kept, "a") as record:
        assert record is None
    current.reset(token)
    token = current.set(PARENT)
    try:
        with step(None, "a") as record:
            assert record is None
            assert current.get() == PARENT
    finally:
        current.reset(token)
    assert kept.records == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_from_settings_to_the_collector(protocol: str) -> None:
    registry = CollectorRegistry()
    with Collector() as collector:
        tracing = open_tracing(
            "encoder",
            {
                **collector.environ(protocol, sample=0.5),
                "OTEL_EXPORTER_OTLP_HEADERS": "X-Token=a%20b, x-other=2",
                "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=encoder-7,team=a%2Cb",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "one we do not read",
                "PROA_TRACE_SLOW_MS": "250",
            },
            registry,
        )
        assert tracing is not None
        assert (tracing.sample, tracing.slow_ms) == (0.5, 250.0)
        tracing.emit(SpanRecord("a", PARENT, None, Kind.SERVER, 1, 2))
        (found,) = collector.wait_sync(lambda spans: spans)
        tracing.close()
        tracing.emit(SpanRecord("b", PARENT, None, Kind.SERVER, 1, 2))
    assert found.service == "proa-encoder"
    assert found.resource["k8s.pod.name"] == "encoder-7"
    assert found.resource["team"] == "a,b"
    assert collector.headers["x-token"] == "a b"
    assert collector.headers["x-other"] == "2"
    text = generate_latest(registry).decode()
    assert 'proa_trace_spans_total{outcome="exported"} 1.0' in text
    assert 'proa_trace_spans_total{outcome="dropped"} 1.0' in text


def test_the_name_of_the_service() -> None:
    def name(**environ: str) -> str:
        with Collector() as collector:
            tracing = open_tracing("decoder", collector.environ() | environ, None)
            assert tracing is not None
            tracing.emit(SpanRecord("a", PARENT, None, Kind.SERVER, 1, 2))
            tracing.close(20.0)
            return collector.spans[0].service

    assert name(OTEL_SERVICE_NAME="mine", OTEL_RESOURCE_ATTRIBUTES="service.name=other") == "mine"
    assert name(OTEL_RESOURCE_ATTRIBUTES="service.name=other") == "other"
    assert name(OTEL_SERVICE_NAME="") == "proa-decoder"


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}],
)
def test_tracing_is_off(environ: dict[str, str]) -> None:
    registry = CollectorRegistry()
    assert open_tracing("frontend", environ, registry) is None
    assert generate_latest(registry) == b""


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "is not http://host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "is not http://host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:99999", "is not http://host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1/?a=b", "is not http://host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:s3cret@h:1", "has credentials"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "is not one of http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cret", "entry 2 is not key=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=s3cret", "entry 1 is not key=value"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=1", "entry 1 is not key=value"),
        ("OTEL_RESOURCE_ATTRIBUTES", ",".join(f"k{i}=1" for i in range(65)), "the limit is 64"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "no/such/file.pem", "No such file"),
        ("OTEL_SDK_DISABLED", "maybe", "neither true nor false"),
        ("PROA_TRACE_SAMPLE", "1.1", "above the maximum 1"),
        ("PROA_TRACE_SAMPLE", "-0.1", "below the minimum 0"),
        ("PROA_TRACE_SLOW_MS", "slow", "not a finite number"),
        ("PROA_TRACE_SAMPEL", "1", "did you mean PROA_TRACE_SAMPLE"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_tracing("frontend", {**ENDPOINT, name: value}, None)
    assert name in str(caught.value)
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    junk = tmp_path / "ca.pem"
    junk.write_text("not PEM")
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(junk),
    }
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_CERTIFICATE"):
        open_tracing("frontend", environ, None)


def test_a_setting_that_only_the_sdk_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_"):
        open_tracing("frontend", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None)
