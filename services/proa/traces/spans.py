"""One span as it was received: cleaned, bounded, immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proa.telemetry.spans import Kind, Value

SpanKey = tuple[str, str]  # trace id and span id, in lower-case hex


@dataclass(frozen=True, slots=True)
class Span:
    """`parent_id`: "" for a root. Times in unix ns. `error`: what the status says, None if good.

    `service`: service.name of the process; `scope`: the library that made it. `events`: unix ns
    and name.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    service: str = ""
    scope: str = ""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: tuple[SpanKey, ...] = ()
    events: tuple[tuple[int, str], ...] = ()
    error: str | None = None

    @property
    def key(self) -> SpanKey:
        return self.trace_id, self.span_id

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    def text(self, name: str, default: str = "") -> str:
        """Attribute `name` for people."""
        value = self.attributes.get(name)
        if value is None:
            return default
        return str(value).lower() if isinstance(value, bool) else str(value)

    def flag(self, name: str) -> bool:
        """Whether attribute `name` is true."""
        return self.attributes.get(name) is True
