"""Spans over OTLP to a real receiver, and to receivers that are none."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fakes.collector import Collector, Event, Link, dead_endpoint, mute_endpoint, request_of_json
from fakes.eventually import eventually_sync
from fakes.pki import Authority, secret
from proa.telemetry import Kind, SpanRecord, TraceContext, Tracing, new_context
from proa.telemetry.otlp import OtlpExporter, Target

PATIENCE_S = 30.0
HTTP_GRPC = pytest.mark.parametrize("protocol", ["http", "grpc"])


def span(name: str = "a") -> SpanRecord:
    return SpanRecord(name, new_context(sampled=True), None, Kind.INTERNAL, 1, 2)


def exporter(endpoint: str, protocol: str, timeout_s: float = 10.0, **more: Any) -> OtlpExporter:
    target = Target(endpoint, "proa-test", "1.2.3", grpc=protocol == "grpc", **more)
    return OtlpExporter(target, timeout_s)


class Root(logging.Handler):
    """What reaches the root logger. caplog would also show what stops on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    handler = Root()
    logging.getLogger().addHandler(handler)
    yield handler.messages
    logging.getLogger().removeHandler(handler)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proa.telemetry.tracing.DELAY_S", 0.01)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


def endpoint_of(collector: Collector, protocol: str) -> str:
    return collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint


@HTTP_GRPC
def test_all_of_a_span_arrives(collector: Collector, protocol: str) -> None:
    own = TraceContext(0xA1, 0xB1, True, "vendor=1,other=2")
    record = SpanRecord(
        "proa.parity",
        own,
        0xC1,
        Kind.CLIENT,
        1_700_000_000_000_000_000,
        1_700_000_000_000_001_000,
        {"proa.k": 4, "proa.wait_ms": 1.5, "proa.won": True, "proa.group": "g-7"},
        links=(TraceContext(0xA2, 0xB2, True), TraceContext(0xA3, 0xB3, False)),
        events=((1_700_000_000_000_000_500, "sent", {"proa.row": 1}),),
        error="worker 2 is gone",
    )
    made = exporter(
        endpoint_of(collector, protocol),
        protocol,
        headers={"X-Token": "s3cret"},
        attributes={"deployment.environment.name": "test", "service.instance.id": "me"},
    )
    assert made.export([record, span("b")]) is None
    made.close()
    found, other = collector.spans
    assert (found.name, found.kind, found.service) == ("proa.parity", "CLIENT", "proa-test")
    assert found.trace_id == "a1".zfill(32)
    assert (found.span_id, found.parent_id) == ("b1".zfill(16), "c1".zfill(16))
    assert (found.start_ns, found.end_ns - found.start_ns) == (record.start_ns, 1000)
    assert found.attributes == record.attributes
    assert found.links == (
        Link("a2".zfill(32), "b2".zfill(16)),
        Link("a3".zfill(32), "b3".zfill(16)),
    )
    assert found.events == (Event(record.start_ns + 500, "sent", {"proa.row": 1}),)
    assert (found.status, found.message) == ("ERROR", "worker 2 is gone")
    assert found.state == "vendor=1,other=2"
    assert found.resource["service.version"] == "1.2.3"
    assert found.resource["service.instance.id"] == "me"
    assert found.resource["deployment.environment.name"] == "test"
    assert (other.parent_id, other.status, other.kind) == ("", "UNSET", "INTERNAL")
    assert collector.headers["x-token"] == "s3cret"


@pytest.mark.parametrize("kind", list(Kind))
def test_kinds_have_their_names(collector: Collector, kind: Kind) -> None:
    record = span()
    record.kind = kind
    assert exporter(collector.http_endpoint, "http").export([record]) is None
    assert collector.spans[0].kind == kind.name


@HTTP_GRPC
def test_a_collector_is_believed_by_its_certificate(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = Authority(), Authority("stranger")
    folder = secret(tmp_path / "collector", authority.issue("collector"), authority)
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(stranger.certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(wrong))
    with Collector(folder) as collector:
        endpoint = endpoint_of(collector, protocol)
        good = exporter(endpoint, protocol, certificate=folder / "ca.crt")
        assert good.export([span()]) is None
        good.close()
        refused = exporter(endpoint, protocol, timeout_s=0.5, certificate=wrong)
        assert refused.export([span()]) is not None
        refused.close()
        assert len(collector.spans) == 1


@HTTP_GRPC
def test_the_reason_is_told_and_the_sdk_itself_is_quiet(protocol: str, logged: list[str]) -> None:
    with dead_endpoint() as endpoint, ThreadPoolExecutor(1) as pool:
        made = exporter(endpoint, protocol)
        pending = pool.submit(made.export, [span()])
        # The SDK tells the cause before it tries again, for 10 s if we let it.
        eventually_sync(lambda: not made._words.fresh, timeout_s=PATIENCE_S)
        made.close()
        reason = pending.result(PATIENCE_S)
    assert reason is not None
    assert reason.startswith(endpoint)
    assert "refused" in reason.lower()
    assert len(reason) <= 500
    assert logged == []


@HTTP_GRPC
@pytest.mark.parametrize("nobody", [dead_endpoint, mute_endpoint])
def test_without_a_collector_nothing_waits_and_nothing_grows(
    nobody: type[AbstractContextManager[str]], protocol: str, logged: list[str]
) -> None:
    with nobody() as endpoint:
        opened = Tracing(exporter(endpoint, protocol, timeout_s=0.3), queue_max=100, batch_max=10)
        began = time.monotonic()
        for _ in range(5_000):
            opened.emit(span())
        took_s = time.monotonic() - began
        eventually_sync(lambda: logged, timeout_s=PATIENCE_S)
        assert len(opened._queue) <= 100
        began = time.monotonic()
        opened.close(0.2)
        close_s = time.monotonic() - began
    assert took_s < 5.0  # some 0.02 s
    assert close_s < 5.0
    assert (opened.exported, opened.dropped) == (0, 5_000)
    assert [message.partition(",")[0] for message in logged] == [
        "traces cannot be exported",
        "traces: 0 spans exported",
    ]


@HTTP_GRPC
def test_close_cuts_short_an_export_that_hangs(protocol: str) -> None:
    with mute_endpoint() as endpoint:
        opened = Tracing(exporter(endpoint, protocol, timeout_s=PATIENCE_S))
        opened.emit(span())
        eventually_sync(lambda: opened._under_way, timeout_s=PATIENCE_S)
        began = time.monotonic()
        opened.close(0.1)
        assert time.monotonic() - began < PATIENCE_S / 3
        assert opened.dropped == 1


EXIT = """
from proa.runtime.tracing import open_tracing
from proa.telemetry import Kind, SpanRecord, new_context
import os
tracing = open_tracing("test", os.environ, None)
tracing.emit(SpanRecord("a", new_context(True), None, Kind.SERVER, 1, 2))
while not tracing._under_way:
    pass
print("end")
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_process_ends_while_an_export_hangs(protocol: str) -> None:
    with mute_endpoint() as endpoint:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        done = subprocess.run(
            [sys.executable, "-c", EXIT],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


@HTTP_GRPC
def test_a_collector_that_refuses_for_a_while(
    collector: Collector, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proa.telemetry.tracing.PAUSE_S", 0.01)
    collector.status = 503
    opened = Tracing(exporter(endpoint_of(collector, protocol), protocol, timeout_s=0.2))
    opened.emit(span("lost"))
    eventually_sync(lambda: opened.dropped == 1, timeout_s=PATIENCE_S)
    collector.status = 200
    opened.emit(span("kept"))
    collector.wait_sync(lambda spans: [one.name for one in spans] == ["kept"])
    opened.close(PATIENCE_S)
    assert (opened.exported, opened.dropped) == (1, 1)


def test_a_bad_tracestate_costs_the_state_not_the_span(collector: Collector) -> None:
    record = span()
    record.context = TraceContext(1, 2, True, "no equals sign")
    assert exporter(collector.http_endpoint, "http").export([record]) is None
    assert collector.spans[0].state == ""


def test_the_receiver_reads_json(collector: Collector) -> None:
    """Triton and browsers may send it: ids are hex, numbers may be strings."""
    one = {
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "b7ad6b7169203331",
        "parentSpanId": "00f067aa0ba902b7",
        "name": "infer",
        "kind": 2,
        "startTimeUnixNano": "5",
        "endTimeUnixNano": "9",
        "attributes": [{"key": "n", "value": {"intValue": "7"}}],
        "links": [{"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}],
        "fieldOfTheFuture": 1,
    }
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "triton"}}]}
    body = json.dumps({"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": [one]}]}]})
    asked = urllib.request.Request(
        collector.http_endpoint + "/v1/traces",
        body.encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        assert answer.status == 200
    (found,) = collector.spans
    assert (found.trace_id, found.span_id) == (one["traceId"], one["spanId"])
    assert (found.parent_id, found.kind, found.service) == ("00f067aa0ba902b7", "SERVER", "triton")
    assert (found.start_ns, found.end_ns, found.attributes) == (5, 9, {"n": 7})
    assert found.links == (Link(one["traceId"], one["spanId"]),)
    assert base64.b64encode(request_of_json(b"{}").SerializeToString()) == b""


def test_a_wait_in_vain_tells_what_came(collector: Collector) -> None:
    assert exporter(collector.http_endpoint, "http").export([span("came")]) is None
    with pytest.raises(AssertionError, match="proa-test:came"):
        collector.wait_sync(lambda spans: len(spans) > 1, timeout_s=0.05)
