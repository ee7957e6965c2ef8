"""A span as we keep it: made after the fact, from times noted on the way."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from proa.telemetry.context import TraceContext

Value = str | int | float | bool


class Kind(enum.Enum):
    """OTLP's span kinds and their numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(slots=True)
class SpanRecord:
    """One finished span.

    parent: span id of the parent, in the same trace. start_ns, end_ns: unix time. links: spans of
    other traces. events: (unix ns, name, attributes). error: the span failed, and why.
    """

    name: str
    context: TraceContext
    parent: int | None
    kind: Kind
    start_ns: int
    end_ns: int
    attributes: dict[str, Value] = field(default_factory=dict)
    links: tuple[TraceContext, ...] = ()
    events: tuple[tuple[int, str, dict[str, Value]], ...] = ()
    error: str | None = None
