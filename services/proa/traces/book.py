"""The spans kept: found by trace and by link, bounded, the oldest traces forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from proa.telemetry.spans import Kind
from proa.traces.spans import Span, SpanKey

TRACES_MAX = 4_096
SPANS_MAX = 100_000  # about 100 MB; a span with much text counts for several
TRACE_SPANS_MAX = 512
CHARS_A_SPAN = 1_024
LINKING_MAX = 64  # spans known to link to one span
REQUEST_PREFIX = "inference."


@dataclass(frozen=True, slots=True)
class Heard:
    """A span, and when it came (seconds of our own clock)."""

    span: Span
    at_s: float


@dataclass(slots=True)
class _Trace:
    heard: dict[str, Heard] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)


class Book:
    """`dropped`: spans not kept, or forgotten. No I/O: the caller says what time it is."""

    def __init__(
        self,
        *,
        traces_max: int = TRACES_MAX,
        spans_max: int = SPANS_MAX,
        trace_spans_max: int = TRACE_SPANS_MAX,
    ) -> None:
        self._traces_max = traces_max
        self._spans_max = spans_max
        self._trace_spans_max = trace_spans_max
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._linking: dict[SpanKey, list[SpanKey]] = {}
        self._size = 0
        self._weight = 0
        self.dropped = 0
        self.waiting: dict[SpanKey, None] = {}  # requests nobody looked at yet, in their order

    def __len__(self) -> int:
        return self._size

    def add(self, spans: Iterable[Span], now_s: float) -> None:
        """Keep `spans`. One that comes twice (an exporter's retry) is kept once."""
        for span in spans:
            self._add(span, now_s)
        while len(self._traces) > self._traces_max or self._weight > self._spans_max:
            self._forget_oldest()

    def get(self, key: SpanKey) -> Heard | None:
        """The span of that id."""
        trace = self._traces.get(key[0])
        return trace.heard.get(key[1]) if trace else None

    def children(self, span: Span) -> list[Heard]:
        """The spans whose parent is `span`, by their start."""
        trace = self._traces.get(span.trace_id)
        if trace is None:
            return []
        found = [trace.heard[child] for child in trace.children.get(span.span_id, ())]
        return sorted(found, key=lambda heard: (heard.span.start_ns, heard.span.end_ns))

    def linking_to(self, key: SpanKey) -> list[Span]:
        """The spans with a link to `key`."""
        found = (self.get(other) for other in self._linking.get(key, ()))
        return [heard.span for heard in found if heard is not None]

    def _add(self, span: Span, now_s: float) -> None:
        trace = self._traces.setdefault(span.trace_id, _Trace())
        if span.span_id in trace.heard:
            return
        if len(trace.heard) >= self._trace_spans_max:
            self.dropped += 1
            return
        self._size += 1
        self._weight += _weight(span)
        trace.children.setdefault(span.parent_id, []).append(span.span_id)
        self._note_links(span)
        if is_request(span):
            self.waiting[span.key] = None
        trace.heard[span.span_id] = Heard(span, now_s)

    def _note_links(self, span: Span) -> None:
        for target in span.links:
            linking = self._linking.setdefault(target, [])
            if len(linking) < LINKING_MAX:
                linking.append(span.key)

    def _forget_oldest(self) -> None:
        _, trace = self._traces.popitem(last=False)
        self._size -= len(trace.heard)
        self._weight -= sum(_weight(heard.span) for heard in trace.heard.values())
        self.dropped += len(trace.heard)
        for heard in trace.heard.values():
            self.waiting.pop(heard.span.key, None)
            for target in heard.span.links:
                self._unlink(target, heard.span.key)

    def _unlink(self, target: SpanKey, source: SpanKey) -> None:
        left = [key for key in self._linking.get(target, ()) if key != source]
        if left:
            self._linking[target] = left
        else:
            self._linking.pop(target, None)


def _weight(span: Span) -> int:
    texts = (value for value in span.attributes.values() if isinstance(value, str))
    chars = sum(map(len, span.attributes)) + sum(map(len, texts))
    return 1 + (chars + 64 * (len(span.links) + len(span.events))) // CHARS_A_SPAN


def is_request(span: Span) -> bool:
    """Whether a frontend made this span for a request of a client."""
    return (
        span.kind is Kind.SERVER
        and span.name.startswith(REQUEST_PREFIX)
        and "proa.model" in span.attributes
    )
