"""Where finished spans go: a bounded queue and one thread that exports from it.

Not the SDK's BatchSpanProcessor (1.45): it drops the oldest span of a full queue with a log line
each, does not look at what the exporter returned, so that spans lost to a dead collector are
counted nowhere, and turns spans into its own objects on the caller's thread, here the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from proa.telemetry.context import TraceContext, child_of, new_context
from proa.telemetry.spans import SpanRecord

log = logging.getLogger(__name__)

QUEUE_SPANS_MAX = 8_192  # some 10 MB at worst; beyond it spans are dropped
# Encoding holds the interpreter lock, some 25 us a span: between small batches the loop gets in.
BATCH_SPANS_MAX = 128
DELAY_S = 0.5  # how long a span may wait for company
PAUSE_S, PAUSE_S_MAX = 0.5, 8.0  # after a failed export, doubled at each
WARN_EVERY_S = 60.0
_RATIO_BITS = 64  # of the trace id, the low ones, as in OpenTelemetry's TraceIdRatioBased


class Exporter(Protocol):
    """Sends spans somewhere."""

    def export(self, records: Sequence[SpanRecord]) -> str | None:
        """Send them all; blocks a few seconds at most. The reason if it failed, else None."""

    def close(self) -> None:
        """Give up what is under way. Does not block."""


class Tracing:
    """The spans of one process. Use it on any thread.

    sample: share of requests sampled at the head. slow_ms: requests slower than this are kept; 0
    leaves it to the model. exported, dropped: spans so far.
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        sample: float = 0.01,
        slow_ms: float = 0.0,
        queue_max: int = QUEUE_SPANS_MAX,
        batch_max: int = BATCH_SPANS_MAX,
    ) -> None:
        self.sample = sample
        self.slow_ms = slow_ms
        self.exported = 0
        self.dropped = 0
        self._exporter = exporter
        self._bound = round(sample * (1 << _RATIO_BITS))
        self._queue_max, self._batch_max = queue_max, batch_max
        self._queue: deque[SpanRecord] = deque()
        self._under_way = 0  # spans in the hands of the exporter
        self._changed = threading.Condition()  # guards all that changes
        self._closing = False
        self._end = 0.0  # when closing: no export begins after this, on the monotonic clock
        self._warned: float | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        self._thread.start()

    def sampled(self, parent: TraceContext | None) -> bool:
        """Whether a request is sampled: its parent's decision, else a draw at the rate `sample`."""
        return self.begin(parent).sampled

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """The context of a request's first span here: a child of `parent`, or a new trace.

        A new trace is sampled by its id, so that all who see the id decide alike.
        """
        if parent is not None:
            return child_of(parent)
        made = new_context(sampled=False)
        if made.trace_id & ((1 << _RATIO_BITS) - 1) >= self._bound:
            return made
        return TraceContext(made.trace_id, made.span_id, sampled=True)

    def emit(self, *records: SpanRecord) -> None:
        """Hand over finished spans: all of them, or none where they do not fit. Never blocks."""
        with self._changed:
            if self._closing or len(self._queue) + len(records) > self._queue_max:
                self.dropped += len(records)
                return
            before = len(self._queue)
            self._queue.extend(records)
            if before == 0 or before < self._batch_max <= len(self._queue):
                self._changed.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Export what is queued, for `timeout_s` seconds at most; the rest is dropped. Blocks."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._end = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)
        self._exporter.close()
        with self._changed:
            self.dropped += len(self._queue) + self._under_way
            self._queue.clear()
            self._under_way = 0
        if self.dropped:
            log.warning("traces: %d spans exported, %d dropped", self.exported, self.dropped)

    def _run(self) -> None:
        pause_s = PAUSE_S
        while batch := self._next_batch():
            reason = self._sent(batch)
            with self._changed:
                if not self._under_way:  # closed meanwhile, and counted there
                    return
                self._under_way = 0
                if reason is None:
                    self.exported += len(batch)
                else:
                    self.dropped += len(batch)
            self._tell(reason)
            if reason is None:
                pause_s = PAUSE_S
                continue
            # A dead collector costs one try now and then, not all the processor there is.
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause_s):
                    return  # what is queued would fail as well
            pause_s = min(pause_s * 2.0, PAUSE_S_MAX)

    def _next_batch(self) -> list[SpanRecord]:
        """Blocks until a batch is full, DELAY_S old, or the last; empty: there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(
                lambda: len(self._queue) >= self._batch_max or self._closing, DELAY_S
            )
            if self._closing and time.monotonic() >= self._end:
                return []
            count = min(len(self._queue), self._batch_max)
            self._under_way = count
            return [self._queue.popleft() for _ in range(count)]

    def _sent(self, batch: Sequence[SpanRecord]) -> str | None:
        try:
            return self._exporter.export(batch)
        except Exception as exc:  # noqa: BLE001  # the border to a foreign library, on a thread
            return f"{type(exc).__name__}: {exc}"

    def _tell(self, reason: str | None) -> None:
        """One warning a minute while exporting fails, one line when it works again."""
        now = time.monotonic()
        if reason is None:
            if self._failing:
                log.info("traces are exported again, %d spans were dropped", self.dropped)
            self._failing = False
        elif self._warned is None or now - self._warned >= WARN_EVERY_S:
            log.warning("traces cannot be exported, %d spans dropped: %s", self.dropped, reason)
            self._failing, self._warned = True, now
