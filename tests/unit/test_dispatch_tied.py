"""Tied requests: a query that waits goes ahead to a busy worker, and back when that pays."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind
from proa.dispatch.timers import HedgeTimer

WAY_S = 0.004


def busy(workers: int = 2, **config: object) -> Script:
    """Each worker runs a query, numbered from 1, sent a millisecond after the one before."""
    story = Script(workers, **{"policy": "auto", "idle_reserve": 0, **config})
    story.warm_up()
    for query in range(1, workers + 1):
        story.query(query)
        story.advance(0.001)
    return story


def knowing_the_way(workers: int = 2) -> Script:
    """As `busy`; it is known that a computation takes SERVICE_S, of which WAY_S is the way."""
    story = busy(workers)
    for _ in range(20):
        story.engine.state.way.add(SERVICE_S - WAY_S, hidden=True)
    return story


def test_a_query_that_finds_all_busy_is_sent_to_the_one_that_is_free_next():
    story = busy()
    send = only(story.query(3), ac.Send)
    assert (send.worker, send.source) == (story.where(1), Source.WORKER)
    assert only(story.query(4), ac.Send).worker == story.where(2)
    assert none_of(story.query(5), ac.Send)
    assert story.engine.queue_depth == 3
    assert story.engine.state.stats.tied == {"sent": 2}


def test_it_begins_with_the_answer_before_and_is_answered_like_any_other():
    story = busy()
    story.query(3)
    story.advance(SERVICE_S)
    begun = story.answer(1)
    assert none_of(begun, ac.Send)
    assert only(begun, ac.SetTimer).timer == HedgeTimer(3)
    assert story.engine.queue_depth == 0
    story.advance(SERVICE_S)
    assert only(story.answer(3), ac.Reply).source is Source.WORKER
    assert story.engine.state.stats.sent == len(story.ends) + 1


def test_its_time_counts_from_when_it_began_and_with_the_way_that_it_was_spared():
    story = knowing_the_way()
    story.query(3)
    story.advance(SERVICE_S)
    story.answer(1)
    story.advance(SERVICE_S - WAY_S)
    story.answer(3)
    host = story.engine.state.workers.get(story.where(3))
    assert host is not None
    assert host.latency_s == pytest.approx(SERVICE_S)


@pytest.mark.parametrize("policy", ["none", "retry", "replicate", "hedge", "parity"])
def test_only_auto_does_so(policy: str):
    assert none_of(busy(policy=policy).query(3), ac.Send)
    assert none_of(busy().query(3, policy=policy), ac.Send)


@pytest.mark.parametrize("kept", [{"mode": "observe"}, {"reconstruct": True}])
def test_neither_what_is_only_observed_nor_a_drill_is_tied(kept: dict[str, object]):
    mode = {key: value for key, value in kept.items() if key == "mode"}
    fields = {key: value for key, value in kept.items() if key != "mode"}
    assert none_of(busy(**mode).query(3, **fields), ac.Send)


def test_nothing_is_tied_where_others_share_the_workers():
    story = busy()
    story.feed(ev.FrontendsChanged(2, 0))
    assert none_of(story.query(3), ac.Send)
    assert only(story.feed(ev.FrontendsChanged(1, 0)), ac.Send).query == 3


@pytest.mark.parametrize("fields", [{"policy": "none"}, {"reconstruct": True}])
def test_nobody_is_tied_past_one_that_may_only_wait_in_the_queue(fields: dict[str, object]):
    story = busy()
    story.query(3, **fields)
    assert none_of(story.query(4), ac.Send)
    sends = [a.query for a in story.answer(1) if isinstance(a, ac.Send)]
    assert sends == [3, 4]


def test_nobody_is_tied_to_a_worker_that_is_late_or_was_slow():
    story = busy()
    story.advance(2 * SERVICE_S)
    assert none_of(story.query(3), ac.Send)
    story = busy()
    for worker in story.engine.state.workers:
        worker.note(SERVICE_S, story.now)
    assert none_of(story.query(3), ac.Send)


def test_nobody_is_tied_to_redundant_work_which_may_have_to_give_way():
    story = busy(3)
    story.answer(3)
    story.advance(0.03)
    hedge = next(s for s in story.every(ac.Send) if s.source is Source.HEDGE)
    story.answer(next(q for q in (1, 2) if q != hedge.query))
    story.query(4)
    assert none_of(story.query(5), ac.Send) or story.sends(5)[0].worker != hedge.worker


def test_an_idle_worker_takes_it_back_while_its_own_is_not_about_to_be_free():
    story = knowing_the_way()
    story.query(3)
    actions = story.answer(2)
    assert [type(a) for a in actions if isinstance(a, ac.Cancel | ac.Send)] == [ac.Cancel, ac.Send]
    again = only(actions, ac.Send)
    assert (again.query, again.worker) == (3, story.where(2))
    assert only(actions, ac.Cancel).attempt == story.sends(3)[0].attempt
    assert story.engine.state.stats.tied == {"sent": 1, "taken_back": 1}
    assert none_of(story.answer(1), ac.Send, ac.SetTimer)


@pytest.mark.parametrize("ways", [-2.9, 0.7])
def test_it_stays_where_it_is_about_to_begin(ways: float):
    story = knowing_the_way()
    story.query(3)
    story.advance(SERVICE_S + ways * WAY_S - 0.002)
    assert none_of(story.answer(2), ac.Cancel, ac.Send)
    assert only(story.query(4), ac.Send).worker == story.where(2)


def test_it_is_taken_back_when_its_worker_is_stuck_not_when_it_is_a_little_late():
    story = knowing_the_way(3)
    story.query(4)
    story.advance(SERVICE_S - 0.003)
    for query in (2, 3):
        assert none_of(story.answer(query), ac.Cancel, ac.Send)
    assert none_of(story.advance(0.45 * SERVICE_S), ac.Cancel, ac.Send)
    actions = story.advance(0.2 * SERVICE_S)
    assert only(actions, ac.Cancel).attempt == story.sends(4)[0].attempt
    sends = [action for action in actions if isinstance(action, ac.Send)]
    assert [(send.query, send.source) for send in sends] == [(4, Source.WORKER), (1, Source.HEDGE)]
    assert {send.worker for send in sends} == {story.where(2), story.where(3)}


def test_when_its_worker_counts_as_stuck_follows_what_is_typical():
    story = knowing_the_way(3)
    story.query(4)
    story.advance(SERVICE_S - 0.003)
    for query in (2, 3):
        story.answer(query)
    for _ in range(64):
        story.engine.state.latency.add(1.5 * SERVICE_S)
    assert none_of(story.advance(0.9 * SERVICE_S), ac.Cancel)
    assert only(story.advance(0.4 * SERVICE_S), ac.Cancel).attempt == story.sends(4)[0].attempt


def test_a_worker_that_dies_costs_it_nothing():
    story = busy(retry_max=0)
    story.query(3)
    actions = story.feed(ev.WorkerLeft(story.where(3)))
    assert none_of([a for a in actions if getattr(a, "query", None) == 3], ac.Fail)
    assert 3 not in story.ends
    story.answer(2)
    assert only(story.answer(3), ac.Reply).query == 3


def test_the_tie_ends_with_the_query():
    story = busy()
    story.query(3)
    assert only(story.feed(ev.QueryCancelled(3)), ac.Cancel).attempt == story.sends(3)[0].attempt
    assert story.engine.queue_depth == 0
    assert only(story.query(4), ac.Send).worker == story.where(3)


def test_an_answer_that_overtakes_is_an_answer():
    story = busy()
    story.query(3)
    reply = only(story.answer(3), ac.Reply)
    assert (reply.query, reply.source) == (3, Source.WORKER)
    assert only(story.answer(1), ac.Reply).query == 1
    assert story.engine.queue_depth == 0


def test_an_error_there_is_retried_like_any_other():
    story = busy()
    story.query(3)
    story.answer(3, ErrorKind.INTERNAL)
    story.answer(2)
    assert [send.source for send in story.sends(3)] == [Source.WORKER, Source.RETRY]


def test_with_more_places_it_waits_behind_all_of_them():
    story = busy(1, inflight_max=2)
    assert only(story.query(2), ac.Send).worker == "w0"
    assert only(story.query(3), ac.Send).worker == "w0"
    assert none_of(story.query(4), ac.Send)
    assert story.engine.queue_depth == 2
    story.answer(1)
    assert only(story.answer(2), ac.Reply).query == 2
    assert story.engine.queue_depth == 0
