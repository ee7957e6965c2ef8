"""Traces: their contexts, spans made after the fact, and a queue that never makes anyone wait.

Nothing here imports OpenTelemetry but `otlp`, which only a process that exports imports.
"""

from __future__ import annotations

from proa.telemetry.context import (
    STATE_CHARS_MAX,
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    child_of,
    current,
    new_context,
    parse,
    to_metadata,
)
from proa.telemetry.spans import Kind, SpanRecord, Value
from proa.telemetry.tracing import Exporter, Tracing

__all__ = [
    "STATE_CHARS_MAX",
    "TRACEPARENT",
    "TRACESTATE",
    "Exporter",
    "Kind",
    "SpanRecord",
    "TraceContext",
    "Tracing",
    "Value",
    "child_of",
    "current",
    "new_context",
    "parse",
    "to_metadata",
]
