"""The queue of finished spans: bounded, never in anyone's way, every span counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from fakes.eventually import eventually_sync
from proa.telemetry import Kind, SpanRecord, TraceContext, Tracing, new_context, tracing

PATIENCE_S = 30.0


class Sink:
    """An exporter that does as it is told: it fails, or waits until `gate` is set."""

    def __init__(self) -> None:
        self.batches: list[list[SpanRecord]] = []
        self.reason: str | None = None
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.closed = False

    def export(self, records: Sequence[SpanRecord]) -> str | None:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.batches.append(list(records))
        return self.reason

    def close(self) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [record.name for batch in self.batches for record in batch]


def span(name: str = "a") -> SpanRecord:
    return SpanRecord(name, new_context(sampled=True), None, Kind.INTERNAL, 1, 2)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def opened(sink: Sink) -> Iterator[Tracing]:
    made = Tracing(sink, queue_max=8, batch_max=4)
    yield made
    sink.gate.set()
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PAUSE_S", 0.01)
    monkeypatch.setattr(tracing, "PAUSE_S_MAX", 0.02)
    monkeypatch.setattr(tracing, "DELAY_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_lone_span_leaves_after_a_while(sink: Sink, opened: Tracing) -> None:
    opened.emit(span("a"))
    eventually_sync(lambda: opened.exported == 1, timeout_s=PATIENCE_S)
    assert sink.names == ["a"]
    assert opened.dropped == 0


def test_a_full_batch_does_not_wait(
    sink: Sink, opened: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "DELAY_S", 10 * PATIENCE_S)
    waiting = opened._changed._waiters  # type: ignore[attr-defined]
    eventually_sync(lambda: waiting, timeout_s=PATIENCE_S)  # for a span
    opened.emit(span("0"))
    eventually_sync(lambda: waiting, timeout_s=PATIENCE_S)  # for company
    for number in range(1, 6):
        opened.emit(span(str(number)))
    eventually_sync(lambda: opened.exported >= 4, timeout_s=PATIENCE_S)
    opened.close()  # does not wait for company either
    assert sink.names == ["0", "1", "2", "3", "4", "5"]
    assert [len(batch) for batch in sink.batches] == [4, 2]


def test_a_full_queue_drops_whole_requests(sink: Sink, opened: Tracing) -> None:
    sink.gate.clear()
    opened.emit(*[span("first")] * 4)
    assert sink.entered.wait(PATIENCE_S)  # 4 are with the exporter, 8 have room
    opened.emit(*[span("second")] * 5)
    opened.emit(*[span("too many")] * 4)
    assert opened.dropped == 4
    opened.emit(*[span("third")] * 3)
    opened.emit(span("too late"))
    assert opened.dropped == 5
    sink.gate.set()
    opened.close(PATIENCE_S)
    assert sink.names == ["first"] * 4 + ["second"] * 5 + ["third"] * 3
    assert (opened.exported, opened.dropped) == (12, 5)


def test_emit_does_not_wait_for_the_exporter(sink: Sink) -> None:
    sink.gate.clear()
    opened = Tracing(sink, queue_max=100)
    began = time.monotonic()
    for _ in range(20_000):
        opened.emit(span())
    took_s = time.monotonic() - began
    assert took_s < PATIENCE_S / 3  # some 0.05 s; waiting once for the gate would take 30
    opened.close(0.05)
    assert (opened.exported, opened.dropped) == (0, 20_000)
    sink.gate.set()


def test_close_gives_up_in_time_and_counts_what_it_lost(sink: Sink) -> None:
    opened = Tracing(sink, batch_max=4)
    sink.gate.clear()
    opened.emit(*[span()] * 6)
    assert sink.entered.wait(PATIENCE_S)
    began = time.monotonic()
    opened.close(0.1)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert sink.closed
    assert (opened.exported, opened.dropped) == (0, 6)
    sink.gate.set()  # the exporter comes back: what it had is counted already
    eventually_sync(lambda: not opened._thread.is_alive(), timeout_s=PATIENCE_S)
    assert (opened.exported, opened.dropped) == (0, 6)


def test_after_close_all_is_dropped(sink: Sink, opened: Tracing) -> None:
    opened.close()
    opened.close()
    opened.emit(span(), span())
    assert opened.dropped == 2
    assert sink.names == []


@pytest.mark.usefixtures("quick")
def test_a_failing_exporter_is_told_of_once_a_minute(
    sink: Sink, opened: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink.reason = "nobody listens"
    for number in range(1, 6):
        opened.emit(span())
        eventually_sync(lambda want=number: opened.dropped == want, timeout_s=PATIENCE_S)
    sink.reason = None
    opened.emit(span("at last"))
    eventually_sync(lambda: opened.exported == 1, timeout_s=PATIENCE_S)
    sink.error = ValueError("it broke")
    opened.emit(span())
    eventually_sync(lambda: opened.dropped == 6, timeout_s=PATIENCE_S)
    sink.error = None
    opened.emit(span())
    eventually_sync(lambda: opened.exported == 2, timeout_s=PATIENCE_S)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "traces cannot be exported, 1 spans dropped: nobody listens",
        "traces are exported again, 5 spans were dropped",
    ]


@pytest.mark.usefixtures("quick")
def test_an_exporter_that_raises_ends_nothing(sink: Sink, opened: Tracing) -> None:
    sink.error = RuntimeError("a bug")
    opened.emit(span())
    eventually_sync(lambda: opened.dropped == 1, timeout_s=PATIENCE_S)
    sink.error = None
    opened.emit(span("b"))
    eventually_sync(lambda: sink.names == ["b"], timeout_s=PATIENCE_S)


def test_the_warning_comes_again_after_a_minute(
    opened: Tracing, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(tracing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    warned = []
    for minute in (0.0, 30.0, 59.0, 61.0, 90.0, 122.0):
        now[0] = 1000.0 + minute
        opened._tell("dead")
        warned.append(len(caplog.records))
    monkeypatch.undo()
    assert warned == [1, 1, 1, 2, 2, 3]


def test_the_parent_decides(sink: Sink) -> None:
    never, always = Tracing(sink, sample=0.0), Tracing(sink, sample=1.0)
    for sampled in (True, False):
        parent = TraceContext(5, 6, sampled, "a=1")
        assert never.sampled(parent) is always.sampled(parent) is sampled
        began = never.begin(parent)
        assert (began.trace_id, began.sampled, began.state) == (5, sampled, "a=1")
        assert began.span_id != 6
    assert always.sampled(None)
    assert not never.sampled(None)
    never.close()
    always.close()


def test_without_a_parent_the_trace_id_decides(sink: Sink) -> None:
    """As OpenTelemetry does: the ids of a lower rate are a part of those of a higher one."""
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    opened = Tracing(sink, sample=0.25)
    theirs, rarer = TraceIdRatioBased(0.25), TraceIdRatioBased(0.1)
    found = [opened.begin(None) for _ in range(4000)]
    for context in found:
        decided = theirs.should_sample(None, context.trace_id, "x").decision.is_sampled()
        assert decided is context.sampled
        if rarer.should_sample(None, context.trace_id, "x").decision.is_sampled():
            assert context.sampled
    # 1000 expected, standard deviation 27
    assert 800 < sum(context.sampled for context in found) < 1200
    assert len({context.trace_id for context in found}) == 4000
    opened.close()
