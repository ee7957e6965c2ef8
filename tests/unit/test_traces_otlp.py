"""Reading OTLP: protobuf, both spellings of JSON, what a hostile sender may write."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest

from fakes import stories
from proa.errors import InvalidRequest
from proa.telemetry.spans import Kind
from proa.traces import otlp
from proa.traces.spans import Span

ALL = [
    *stories.reconstructed(),
    stories.span(
        "d4" * 16, 1, "odd", 0, 1, error="no route", whole=1 << 40, real=0.25, text="a", yes=True
    ),
]


def as_text(tree: Any) -> bytes:
    return json.dumps(tree).encode()


@pytest.mark.parametrize("spelling", ["protobuf", "standard", "plain"])
def test_every_spelling_gives_the_same_spans(spelling: str) -> None:
    match spelling:
        case "protobuf":
            found = otlp.read_protobuf(stories.message(ALL).SerializeToString())
        case "standard":
            found = otlp.read_json(as_text(stories.standard_json(ALL)))
        case _:
            found = otlp.read_json(as_text(stories.plain_json(ALL)))
    assert found == ALL


def test_json_as_the_standard_shows_it() -> None:
    """Written by hand: upper-case hex, a number as text, an unknown field, an enum by name."""
    body = b"""{"resourceSpans": [{"resource": {"attributes": [{"key": "service.name",
      "value": {"stringValue": "triton"}}]}, "scopeSpans": [{"spans": [{
      "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174",
      "parentSpanId": "EEE19B7EC3C1B173", "name": "InferRequest", "kind": "SPAN_KIND_SERVER",
      "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": 1544712661000000000,
      "attributes": [{"key": "n", "value": {"intValue": "7"}}], "future": [1]}]}]}]}"""
    (found,) = otlp.read_json(body)
    assert found == Span(
        trace_id="5b8efff798038103d269b633813fc60c",
        span_id="eee19b7ec3c1b174",
        parent_id="eee19b7ec3c1b173",
        name="InferRequest",
        kind=Kind.SERVER,
        start_ns=1_544_712_660_000_000_000,
        end_ns=1_544_712_661_000_000_000,
        service="triton",
        attributes={"n": 7},
    )


def test_json_of_a_real_triton() -> None:
    """Recorded from the wheel's (its exporter is OpenTelemetry's for C++, 1.13), shortened."""
    body = b"""{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":
      {"stringValue":"triton-inference-server"}}]},"scopeSpans":[{"scope":{"name":"triton-server"},
      "spans":[{"attributes":[{"key":"triton.model_name","value":{"stringValue":"tiny"}},
      {"key":"triton.model_version","value":{"intValue":"1"}}],
      "endTimeUnixNano":"1795239325248445853","events":[{"name":"QUEUE_START","timeUnixNano":
      "1795239325241863911"}],"kind":2,"name":"tiny","parentSpanId":"0e0d11a2d7922caf","spanId":
      "986da43745bf9596","startTimeUnixNano":"1795239325241838213","traceId":
      "abababababababababababababababab"}]}]}]}"""
    (found,) = otlp.read_json(body)
    assert found.key == ("ab" * 16, "986da43745bf9596")
    assert found.kind is Kind.SERVER
    assert found.scope == "triton-server"
    assert found.duration_ms == pytest.approx(6.60764)
    assert found.attributes == {"triton.model_name": "tiny", "triton.model_version": 1}
    assert found.events == ((1_795_239_325_241_863_911, "QUEUE_START"),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"resourceSpans": 7}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "abcd", "spanId": "ab"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": 1e400}]}]}]}',
    ],
)
def test_garbage_in_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not OTLP in JSON"):
        otlp.read_json(body)


def test_garbage_in_protobuf_is_refused() -> None:
    short = stories.message([stories.span("a1" * 15, 1, "x", 0, 1)]).SerializeToString()
    for body in (b"\xff" * 40, b"not protobuf", short):
        with pytest.raises(InvalidRequest, match="not an OTLP"):
            otlp.read_protobuf(body)


def test_what_a_span_may_hold_is_bounded() -> None:
    much = replace(
        stories.span("a1" * 16, 1, "n" * 10_000, 5, 1),
        attributes={f"key{i}": "v" * 10_000 for i in range(1_000)},
        links=tuple(("b2" * 16, f"{i:016x}") for i in range(1_000)),
        events=tuple((i, "e") for i in range(1_000)),
    )
    (found,) = otlp.read_protobuf(stories.message([much]).SerializeToString())
    assert len(found.name) == otlp.TEXT_CHARS_MAX
    assert len(found.attributes) == otlp.ATTRIBUTES_MAX
    assert {len(str(value)) for value in found.attributes.values()} == {otlp.TEXT_CHARS_MAX}
    assert len(found.links) == otlp.LINKS_MAX
    assert len(found.events) == otlp.EVENTS_MAX
    assert found.end_ns == found.start_ns  # it ended before it began


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    named = replace(
        stories.span("a1" * 16, 1, "\x1b[2Jgone\n\u202e", 0, 1), attributes={"k\r": "\x07bell"}
    )
    (found,) = otlp.read_protobuf(stories.message([named]).SerializeToString())
    assert found.name == "\ufffd[2Jgone\ufffd\ufffd"
    assert found.attributes == {"k\ufffd": "\ufffdbell"}


def test_gzip_within_limits() -> None:
    assert otlp.gunzip(gzip.compress(b"spans")) == b"spans"
    assert len(otlp.gunzip(gzip.compress(bytes(otlp.BODY_BYTES_MAX)))) == otlp.BODY_BYTES_MAX
    with pytest.raises(otlp.BodyTooLarge):
        otlp.gunzip(gzip.compress(bytes(otlp.BODY_BYTES_MAX + 1)))
    for body in (b"", b"plain", gzip.compress(b"spans")[:-9]):
        with pytest.raises(InvalidRequest, match="not gzip"):
            otlp.gunzip(body)
