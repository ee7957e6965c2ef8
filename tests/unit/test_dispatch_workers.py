"""Workers come, go, fail and slow down; the picker knows."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import DEPLOYED, PARITY, ErrorKind
from proa.dispatch.workers import ERRORS_IN_ROW_MAX, Worker, WorkerTable


def test_queries_on_a_worker_that_left_are_sent_again():
    story = Script(2, policy="retry")
    send = only(story.query(1), ac.Send)
    actions = story.feed(ev.WorkerLeft(send.worker))
    assert only(actions, ac.Cancel).attempt == send.attempt
    again = only(actions, ac.Send)
    assert (again.query, again.source) == (1, Source.RETRY)
    assert again.worker != send.worker
    assert none_of(actions, ac.Probe)
    assert story.feed(ev.Answered(send.attempt, ok=True)) == []
    assert story.feed(ev.WorkerLeft(send.worker)) == []


def test_parity_on_a_worker_that_left_is_lost_and_nothing_more():
    story = Script(4, policy="parity", k=2)
    story.query(1)
    parity = only(story.query(2), ac.SendParity)
    actions = story.feed(ev.WorkerLeft(parity.worker))
    assert none_of(actions, ac.Send, ac.SendParity, ac.Fail)
    assert story.engine.state.stats.redundancy_lost == 1


def test_a_suspect_is_probed_once_and_gets_nothing_until_it_joins_again():
    story = Script(2, policy="none")
    assert only(story.feed(ev.WorkerSuspected("w0")), ac.Probe) == ac.Probe("w0")
    assert story.feed(ev.WorkerSuspected("w0")) == []
    assert only(story.query(1), ac.Send).worker == "w1"
    assert none_of(story.query(2), ac.Send)
    assert only(story.join("w0"), ac.Send).worker == "w0"


def test_a_worker_that_joins_anew_has_lost_what_ran_there():
    story = Script(2, policy="retry")
    send = only(story.query(1), ac.Send)
    actions = story.join(send.worker)
    assert only(actions, ac.Cancel).attempt == send.attempt
    assert only(actions, ac.Send).worker != send.worker


def test_a_refused_connection_makes_a_suspect_at_once():
    story = Script(2, policy="retry")
    send = only(story.query(1), ac.Send)
    assert only(story.answer(1, ErrorKind.UNAVAILABLE), ac.Probe).worker == send.worker


def test_other_errors_make_a_suspect_only_in_a_row():
    story = Script(1, policy="none")
    probes: list[ac.Probe] = []
    for query in range(ERRORS_IN_ROW_MAX + 1):
        kind = None if query == 1 else ErrorKind.INTERNAL
        assert not probes
        story.query(query)
        probes += [a for a in story.answer(query, kind) if isinstance(a, ac.Probe)]
    story.query(9)
    assert only(story.answer(9, ErrorKind.INTERNAL), ac.Probe).worker == "w0"


@pytest.mark.parametrize("kind", [ErrorKind.INVALID, ErrorKind.OVERLOADED])
def test_errors_of_the_query_do_not_count_against_the_worker(kind: ErrorKind):
    story = Script(1, policy="none")
    for query in range(5):
        story.query(query)
        assert none_of(story.answer(query, kind), ac.Probe)


def test_an_overdue_attempt_makes_its_worker_suspect():
    story = Script(2, policy="retry", overdue_s_min=1.0)
    send = only(story.query(1, deadline=60.0), ac.Send)
    assert none_of(story.advance(1.0), ac.Probe)
    actions = story.advance(0.5)
    assert only(actions, ac.Probe).worker == send.worker
    assert only(actions, ac.Send).worker != send.worker


def test_the_last_worker_is_never_suspected_for_being_late():
    story = Script(2, policy="retry")
    story.query(1, deadline=60.0)
    story.query(2, deadline=60.0)
    actions = story.advance(30.0)
    assert len([a for a in actions if isinstance(a, ac.Probe)]) == 1
    assert story.engine.state.workers.ready() == 1


def test_slow_models_are_given_time():
    story = Script(2, policy="retry")
    story.warm_up(service_s=0.5)
    story.query(1, deadline=story.now + 60.0)
    assert none_of(story.advance(4.9), ac.Probe)
    assert only(story.advance(0.5), ac.Probe)


# --- the picker


def test_workers_take_turns():
    story = Script(4, policy="none")
    story.warm_up(8)
    workers = []
    for query in range(8):
        workers.append(only(story.query(query), ac.Send).worker)
        story.advance(SERVICE_S)
        story.answer(query)
    assert sorted(workers[:4]) == sorted(workers[4:]) == ["w0", "w1", "w2", "w3"]


def slow_down(story: Script, worker: str, kind: ErrorKind | None, seconds: float) -> None:
    """One attempt at `worker` takes that long and ends so; others take SERVICE_S."""
    for query in range(100, 104):
        story.query(query)
    story.advance(seconds)
    for query in range(100, 104):
        story.answer(query, kind if story.where(query) == worker else None)


def chosen(story: Script, queries: int) -> list[str]:
    """The workers of so many queries, one at a time."""
    found = []
    for query in range(queries):
        found.append(only(story.query(200 + query), ac.Send).worker)
        story.advance(SERVICE_S)
        story.answer(200 + query)
    return found


def test_a_recently_slow_worker_is_avoided_while_others_are_idle():
    table = WorkerTable(inflight_max=1)
    for name in ("slow", "fast"):
        table.join(Worker(name, name, "p", frozenset((DEPLOYED,))))
    slow, fast = table
    slow.note_answer(0.1, median_s=0.02, now=1.0)
    fast.note_answer(0.021, median_s=0.02, now=1.0)
    assert table.pick(DEPLOYED, 1.1) is fast
    table.start(fast, 1, 1.1)
    assert table.pick(DEPLOYED, 1.1) is slow
    assert slow.score_s(1.0) == pytest.approx(0.04)
    assert slow.score_s(1.5) == pytest.approx(0.04 / 2.718281828)
    assert slow.score_s(20.0) < 1e-9


def test_a_worker_that_fails_fast_is_not_rewarded():
    story = Script(4, policy="none")
    story.warm_up()
    slow_down(story, "w2", ErrorKind.INTERNAL, 0.001)
    assert "w2" not in chosen(story, 6)


def test_a_worker_that_answered_fast_again_is_forgiven():
    worker = Worker("w", "d", "p", frozenset((DEPLOYED,)))
    worker.note_error(0.02, now=0.0)
    bad = worker.score_s(0.0)
    for _ in range(6):
        worker.note_answer(0.01, median_s=0.02, now=0.0)
    assert worker.score_s(0.0) < bad / 10
    assert worker.errors_in_row == 0
    assert (worker.errors, worker.answered) == (1, 6)


def test_the_picker_fills_workers_evenly_up_to_inflight_max():
    story = Script(2, policy="none", inflight_max=2)
    workers = [only(story.query(q), ac.Send).worker for q in range(4)]
    assert sorted(workers[:2]) == sorted(workers[2:]) == ["w0", "w1"]
    assert none_of(story.query(4), ac.Send)


def test_a_worker_without_the_role_is_never_picked():
    table = WorkerTable(inflight_max=1)
    table.join(Worker("w0", "d0", "p", frozenset((PARITY,))))
    assert table.pick(DEPLOYED, 0.0) is None
    assert table.ready() == table.idle() == 0
    assert table.has_parity()
    assert table.domains() == {"d0"}
    assert table.domains(DEPLOYED) == table.domains(PARITY, "q") == set()
