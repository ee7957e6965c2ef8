"""Spans to a collector over OTLP. Only a process that exports imports this module.

The exporters of the OpenTelemetry SDK do the work; spans are handed to them as the objects that
the SDK would have made itself.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.sdk.version import __version__ as sdk_version

from proa.telemetry.context import TraceContext
from proa.telemetry.spans import Kind, SpanRecord

TIMEOUT_S = 2.0  # of one export, with the exporter's own retries
REASON_CHARS_MAX = 500

_KINDS = {
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
    Kind.SERVER: trace.SpanKind.SERVER,
    Kind.CLIENT: trace.SpanKind.CLIENT,
    Kind.PRODUCER: trace.SpanKind.PRODUCER,
    Kind.CONSUMER: trace.SpanKind.CONSUMER,
}
_FLAGS = {
    False: trace.TraceFlags(trace.TraceFlags.DEFAULT),
    True: trace.TraceFlags(trace.TraceFlags.SAMPLED),
}


@dataclass(frozen=True)
class Target:
    """Where to and as whom. endpoint: the base URL; headers may hold secrets."""

    endpoint: str
    service: str
    version: str
    grpc: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: Path | None = None  # the authorities that vouch for the collector, PEM
    attributes: Mapping[str, str] = field(default_factory=dict)


class OtlpExporter:
    """An Exporter over OTLP, HTTP with protobuf or gRPC. Errors: OSError (the certificate)."""

    def __init__(self, target: Target, timeout_s: float = TIMEOUT_S) -> None:
        self._endpoint = target.endpoint
        self._resource = _resource(target)
        self._scope = InstrumentationScope("proa", target.version)
        make = _grpc_exporter if target.grpc else _http_exporter
        self._exporter = make(target, timeout_s)
        self._words = _FirstWords()  # after: what it says of its settings may be heard

    def export(self, records: Sequence[SpanRecord]) -> str | None:
        """Send `records`; the reason if that failed."""
        self._words.fresh = True
        spans = [self._span(record) for record in records]
        if self._exporter.export(spans) is SpanExportResult.SUCCESS:
            return None
        return f"{self._endpoint}: {self._words.first or 'no reason given'}"[:REASON_CHARS_MAX]

    def close(self) -> None:
        """End what is under way."""
        self._exporter.shutdown()

    def _span(self, record: SpanRecord) -> ReadableSpan:
        own = record.context
        parent = None
        if record.parent is not None:
            parent = _foreign(TraceContext(own.trace_id, record.parent, own.sampled))
        status = trace.Status(trace.StatusCode.UNSET)
        if record.error is not None:
            status = trace.Status(trace.StatusCode.ERROR, record.error)
        return ReadableSpan(
            record.name,
            context=_foreign(own),
            parent=parent,
            resource=self._resource,
            attributes=record.attributes,
            events=[Event(name, attributes, when) for when, name, attributes in record.events],
            links=[trace.Link(_foreign(link)) for link in record.links],
            kind=_KINDS[record.kind],
            status=status,
            start_time=record.start_ns,
            end_time=record.end_ns,
            instrumentation_scope=self._scope,
        )


class _FirstWords(logging.Handler):
    """Keeps the SDK's first complaint of an export, which has the cause, and lets none into our
    log: it complains of every batch, `Tracing` says it once a minute. What it said lasts: it does
    not repeat itself within 20 seconds."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.fresh = True
        self.first = ""
        logger = logging.getLogger("opentelemetry.exporter")
        logger.propagate = False
        logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, _FirstWords)]
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if self.fresh:
            self.first, self.fresh = record.getMessage(), False


def _http_exporter(target: Target, timeout_s: float) -> SpanExporter:
    session = requests.Session()
    if target.certificate is not None:
        # REQUESTS_CA_BUNDLE would win over the certificate we were given.
        session.trust_env = False
    return HttpExporter(
        endpoint=target.endpoint.rstrip("/") + "/v1/traces",
        certificate_file=str(target.certificate) if target.certificate else None,
        headers=dict(target.headers),
        timeout=timeout_s,
        session=session,
    )


def _grpc_exporter(target: Target, timeout_s: float) -> SpanExporter:
    credentials = None
    if target.endpoint.startswith("https://"):
        roots = target.certificate.read_bytes() if target.certificate else None
        credentials = grpc.ssl_channel_credentials(roots)
    return GrpcExporter(
        endpoint=target.endpoint,
        insecure=credentials is None,
        credentials=credentials,
        headers={key.lower(): value for key, value in target.headers.items()},
        timeout=timeout_s,
    )


class _Resource(Resource):
    """Its hash is taken for every span, and would be that of its JSON, made anew each time."""

    def __hash__(self) -> int:
        return id(self)


def _resource(target: Target) -> Resource:
    """As the specification wants it; `attributes` of the environment win, but for the name."""
    return _Resource(
        {
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": sdk_version,
            "service.version": target.version,
            "service.instance.id": str(uuid.uuid4()),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            **target.attributes,
            "service.name": target.service,
        }
    )


def _foreign(context: TraceContext) -> trace.SpanContext:
    state = trace.TraceState.from_header([context.state]) if context.state else None
    return trace.SpanContext(
        context.trace_id, context.span_id, False, _FLAGS[context.sampled], state
    )
