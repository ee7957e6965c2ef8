"""OTLP's trace messages, in protobuf and in JSON, as Spans.

JSON has hex ids, and 64-bit numbers as text. The names of the proto (trace_id for traceId) and
plain numbers are read too: writers that turn a message into JSON field by field make these.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from proa.errors import InvalidRequest
from proa.telemetry.spans import Kind, Value
from proa.traces.spans import Span

BODY_BYTES_MAX = 4 << 20
TEXT_CHARS_MAX = 256
ATTRIBUTES_MAX = 64
LINKS_MAX = 64
EVENTS_MAX = 32

_IDS = {"traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id"}
_KINDS = {kind.value: kind for kind in Kind}  # of an unspecified one one may assume INTERNAL
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: with a gzip header


class BodyTooLarge(InvalidRequest):
    """More than BODY_BYTES_MAX, before or after decompression."""


def read_protobuf(body: bytes) -> list[Span]:
    """The spans of an ExportTraceServiceRequest. Errors: InvalidRequest."""
    try:
        return _spans(ExportTraceServiceRequest.FromString(body))
    except (DecodeError, ValueError) as exc:
        raise InvalidRequest(f"not an OTLP trace message: {exc}") from exc


def read_json(body: bytes) -> list[Span]:
    """The same from OTLP's JSON. Errors: InvalidRequest."""
    try:
        tree = json.loads(body)
        _hex_to_base64(tree)
        message = json_format.ParseDict(
            tree, ExportTraceServiceRequest(), ignore_unknown_fields=True
        )
        return _spans(message)
    except (json_format.ParseError, ValueError, RecursionError, AttributeError, TypeError) as exc:
        raise InvalidRequest(f"not OTLP in JSON: {type(exc).__name__}: {exc}") from exc


def gunzip(body: bytes) -> bytes:
    """Decompressed, at most BODY_BYTES_MAX. Errors: InvalidRequest, BodyTooLarge."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        found = inflater.decompress(body, BODY_BYTES_MAX + 1)
    except zlib.error as exc:
        raise InvalidRequest(f"not gzip: {exc}") from exc
    if len(found) > BODY_BYTES_MAX:
        raise BodyTooLarge(f"more than {BODY_BYTES_MAX} bytes after decompression")
    if not inflater.eof:
        raise InvalidRequest("not gzip: it ends too early")
    return found


def _hex_to_base64(tree: Any) -> None:
    """OTLP/JSON writes ids in hex, where protobuf's own JSON wants base64. Errors:
    TypeError, ValueError.
    """
    if not isinstance(tree, dict):
        raise TypeError("not an object")
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            for key in node.keys() & _IDS:
                if isinstance(node[key], str):
                    node[key] = base64.b64encode(binascii.unhexlify(node[key])).decode()
            stack.extend(node.values())


def _spans(message: ExportTraceServiceRequest) -> list[Span]:
    found = []
    for resource in message.resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            library = _clean(scope.scope.name)
            found += [_span(span, service, library) for span in scope.spans]
    return found


def _span(span: trace_pb2.Span, service: str, scope: str) -> Span:
    """Errors: ValueError for ids of the wrong length."""
    _check_ids(span.trace_id, span.span_id)
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex()[:16],
        name=_clean(span.name),
        kind=_KINDS.get(int(span.kind), Kind.INTERNAL),
        start_ns=span.start_time_unix_nano,
        # A span that ends before it starts was made by two clocks.
        end_ns=max(span.start_time_unix_nano, span.end_time_unix_nano),
        service=service,
        scope=scope,
        attributes=_attributes(span.attributes),
        links=tuple(_links(span.links)),
        events=tuple((e.time_unix_nano, _clean(e.name)) for e in span.events[:EVENTS_MAX]),
        error=(_clean(span.status.message) or "error") if failed else None,
    )


def _check_ids(trace_id: bytes, span_id: bytes) -> None:
    if len(trace_id) != 16 or len(span_id) != 8:
        raise ValueError(f"ids of {len(trace_id)} and {len(span_id)} bytes instead of 16 and 8")


def _links(links: Iterable[trace_pb2.Span.Link]) -> Iterator[tuple[str, str]]:
    for link, _ in zip(links, range(LINKS_MAX), strict=False):
        _check_ids(link.trace_id, link.span_id)
        yield link.trace_id.hex(), link.span_id.hex()


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair, _ in zip(pairs, range(ATTRIBUTES_MAX), strict=False):
        value = _value(pair.value)
        if value is not None:
            found[_clean(pair.key)] = value
    return found


def _value(value: AnyValue) -> Value | None:
    """Scalars; a list as text; anything else is left out."""
    match value.WhichOneof("value"):
        case "string_value":
            return _clean(value.string_value)
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "array_value":
            items = (_value(v) for v in value.array_value.values[:ATTRIBUTES_MAX])
            return _clean(", ".join(str(item) for item in items))
    return None


def _clean(text: str) -> str:
    """Short, and without what a terminal would obey."""
    kept = text[:TEXT_CHARS_MAX]
    return kept if kept.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in kept)
