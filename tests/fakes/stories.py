"""Spans of one request as the services make them, and spans as OTLP messages."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from proa.telemetry.spans import Kind, Value
from proa.traces.spans import Span

T0_NS = 1_700_000_000_000_000_000
INFER = "inference.GRPCInferenceService/ModelInfer"
ENCODE = "proa.api.v1.Encoder/InferParity"
TRITON = {"service": "proa-worker", "scope": "triton-server"}
REQUEST, MEMBER, PARITY = "a1" * 16, "b2" * 16, "c3" * 16


def span(trace: str, number: int, name: str, start_ms: float, end_ms: float, **more: Any) -> Span:
    """Span `number` of `trace`; `parent`: the number of another; other words: attributes, with
    `_` for the dot after proa (proa_won), unless Span has a field of that name.
    """
    fields = {
        key: more.pop(key)
        for key in ("kind", "service", "scope", "links", "events", "error")
        if key in more
    }
    parent = more.pop("parent", 0)
    return Span(
        trace_id=trace,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        name=name,
        start_ns=T0_NS + round(start_ms * 1e6),
        end_ns=T0_NS + round(end_ms * 1e6),
        attributes={key.replace("proa_", "proa."): value for key, value in more.items()},
        **{"kind": Kind.INTERNAL, "service": "proa-frontend", **fields},
    )


def reconstructed() -> list[Span]:
    """A request to w2, which is late; member 1 on w1 and the parity on w3 save it. The member
    arrived 2 ms earlier.
    """
    return [*_request(), *_member(), *_parity()]


def _request() -> list[Span]:
    decoded = (PARITY, f"{1:016x}")
    return [
        span(
            REQUEST, 1, INFER, 0, 32.9, kind=Kind.SERVER, proa_model="digits",
            proa_source="reconstructed", proa_group=17, proa_position=0, proa_policy="parity",
            proa_kept="reconstructed",
        ),
        span(
            REQUEST, 2, INFER, 0.4, 32.8, parent=1, kind=Kind.CLIENT, proa_attempt=1,
            proa_kind="worker", proa_worker="w2", proa_won=False, proa_cancelled=True,
        ),
        span(REQUEST, 3, "InferRequest", 1.0, 61.0, parent=2, **TRITON),
        span(
            REQUEST, 4, "proa.decode", 31.5, 32.6, parent=1, proa_group=17, proa_missing=1,
            proa_placement="inline", links=(decoded,),
        ),
    ]  # fmt: skip


def _member() -> list[Span]:
    return [
        span(
            MEMBER, 1, INFER, -2.0, 21.3, kind=Kind.SERVER, proa_model="digits",
            proa_source="worker", proa_worker="w1", proa_group=17, proa_position=1,
            proa_kept="sampled",
        ),
        span(
            MEMBER, 2, INFER, -1.7, 21.1, parent=1, kind=Kind.CLIENT, proa_attempt=1,
            proa_kind="worker", proa_worker="w1", proa_won=True,
        ),
        span(MEMBER, 3, "InferRequest", -1.2, 20.7, parent=2, **TRITON),
    ]  # fmt: skip


def _parity() -> list[Span]:
    members = ((REQUEST, f"{1:016x}"), (MEMBER, f"{1:016x}"))
    encoder = "proa-encoder"
    return [
        span(
            PARITY, 1, "proa.parity", 0.2, 31.2, proa_group=17, proa_k=2, proa_r=1, proa_row=0,
            proa_worker="w3", proa_fillers=0, links=members,
            events=((T0_NS + 300_000, "sent"), (T0_NS + 31_200_000, "answered")),
        ),
        span(PARITY, 2, ENCODE, 0.3, 31.1, parent=1, kind=Kind.CLIENT),
        span(PARITY, 3, ENCODE, 0.9, 30.7, parent=2, kind=Kind.SERVER, service=encoder),
        span(PARITY, 4, "proa.encode", 1.0, 1.4, parent=3, service=encoder),
        span(PARITY, 5, "proa.infer", 1.5, 30.5, parent=3, kind=Kind.CLIENT, service=encoder),
        span(PARITY, 6, "InferRequest", 2.0, 30.2, parent=5, **TRITON),
        span(PARITY, 7, "proa.compute", 2.6, 29.9, parent=6, service="proa-worker"),
    ]  # fmt: skip


def changed(spans: list[Span], number: int, trace: str = REQUEST, **fields: Any) -> list[Span]:
    """`spans` with one of them changed: fields of Span; `attributes` are added to its own."""
    found = []
    for one in spans:
        if one.key == (trace, f"{number:016x}"):
            more = dict(fields)
            if "attributes" in more:
                more["attributes"] = {**one.attributes, **more["attributes"]}
            found.append(replace(one, **more))
        else:
            found.append(one)
    return found


def message(spans: Iterable[Span]) -> ExportTraceServiceRequest:
    """What an exporter would send."""
    found = ExportTraceServiceRequest()
    for one in spans:
        resource = found.resource_spans.add()
        resource.resource.attributes.append(_pair("service.name", one.service))
        scope = resource.scope_spans.add()
        scope.scope.name = one.scope
        scope.spans.append(_encoded(one))
    return found


def standard_json(spans: Iterable[Span]) -> dict[str, Any]:
    """As the standard and Triton have it: camelCase, hex ids, 64-bit integers as text."""
    return _hex_ids(json_format.MessageToDict(message(spans)))


def plain_json(spans: Iterable[Span]) -> dict[str, Any]:
    """As simpler writers have it: the names of the proto, hex ids, numbers as numbers."""
    tree = _hex_ids(json_format.MessageToDict(message(spans), preserving_proto_field_name=True))
    text = json.dumps(tree)
    for one in spans:
        for at_ns in (one.start_ns, one.end_ns):
            text = text.replace(f'"{at_ns}"', str(at_ns))
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _encoded(one: Span) -> trace_pb2.Span:
    found = trace_pb2.Span(
        trace_id=bytes.fromhex(one.trace_id),
        span_id=bytes.fromhex(one.span_id),
        parent_span_id=bytes.fromhex(one.parent_id),
        name=one.name,
        kind=trace_pb2.Span.SpanKind.ValueType(one.kind.value),
        start_time_unix_nano=one.start_ns,
        end_time_unix_nano=one.end_ns,
        attributes=[_pair(key, value) for key, value in one.attributes.items()],
    )
    for trace_id, span_id in one.links:
        found.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id))
    for at_ns, name in one.events:
        found.events.add(time_unix_nano=at_ns, name=name)
    if one.error is not None:
        found.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        found.status.message = one.error
    return found


def _pair(key: str, value: Value) -> KeyValue:
    kinds = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    return KeyValue(key=key, value=AnyValue(**{kinds[type(value)]: value}))


def _hex_ids(tree: Any) -> Any:
    """protobuf's JSON has ids in base64."""
    if isinstance(tree, list):
        return [_hex_ids(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ids = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}
    return {
        key: base64.b64decode(value).hex() if key in ids else _hex_ids(value)
        for key, value in tree.items()
    }
