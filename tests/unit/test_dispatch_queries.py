"""The life of a query: sent, answered, retried, failed, cancelled."""

from __future__ import annotations

import pytest

from fakes.script import Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind


def test_a_query_is_sent_at_once_answered_and_released():
    story = Script(2, policy="none", parity_possible=False)
    send = only(story.query(1), ac.Send)
    assert (send.query, send.source) == (1, Source.WORKER)
    story.advance(0.02)
    actions = story.answer(1)
    assert only(actions, ac.Reply) == ac.Reply(1, Source.WORKER, send.attempt, send.worker)
    assert only(actions, ac.Release) == ac.Release(1)
    assert not story.engine.state.queries


def test_queries_wait_in_order_for_a_free_worker():
    story = Script(1, policy="none")
    story.query(1)
    assert none_of(story.query(2) + story.query(3), ac.Send)
    assert story.engine.queue_depth == 2
    assert only(story.answer(1), ac.Send).query == 2
    assert only(story.answer(2), ac.Send).query == 3


def test_an_answer_that_comes_twice_or_from_nowhere_is_ignored():
    story = Script(2, policy="none")
    send = only(story.query(1), ac.Send)
    story.answer(1)
    assert story.feed(ev.Answered(send.attempt, ok=True)) == []
    assert story.feed(ev.Answered(999, ok=False, error_kind=ErrorKind.INTERNAL)) == []


def test_a_failed_attempt_is_sent_again_elsewhere():
    story = Script(2, policy="retry")
    first = only(story.query(1), ac.Send)
    again = only(story.answer(1, ErrorKind.INTERNAL), ac.Send)
    assert again.source is Source.RETRY
    assert again.worker != first.worker
    assert only(story.answer(1), ac.Reply).source is Source.RETRY


def test_a_retry_goes_back_to_the_only_worker_there_is():
    story = Script(1, policy="retry")
    story.query(1)
    assert only(story.answer(1, ErrorKind.INTERNAL), ac.Send).worker == "w0"


def test_a_retry_does_not_wait_for_a_worker_that_only_runs_parity():
    story = Script(1, policy="retry", pool="dedicated")
    story.join("w1", roles=frozenset((ev.PARITY,)))
    story.query(1)
    assert only(story.answer(1, ErrorKind.INTERNAL), ac.Send).worker == "w0"


def test_a_retry_that_waits_goes_before_the_queue():
    story = Script(2, policy="retry")
    for query in (1, 2, 3):
        story.query(query)
    assert none_of(story.answer(1, ErrorKind.UNAVAILABLE), ac.Fail)
    assert [s.query for s in story.every(ac.Send)] == [1, 2]
    assert only(story.answer(2), ac.Send).query == 1


def test_it_fails_with_the_last_error_once_retry_max_is_reached():
    story = Script(4, policy="retry", retry_max=2)
    story.query(1)
    story.answer(1, ErrorKind.INTERNAL)
    story.answer(1, ErrorKind.INTERNAL)
    fail = only(story.answer(1, ErrorKind.INTERNAL, message="output is NaN"), ac.Fail)
    assert (fail.status, fail.message, fail.retry_after_s) == ("INTERNAL", "output is NaN", None)
    assert len({s.worker for s in story.sends(1)}) == 3


def test_policy_none_never_retries():
    story = Script(2, policy="none")
    story.query(1)
    assert only(story.answer(1, ErrorKind.UNAVAILABLE), ac.Fail).status == "UNAVAILABLE"


@pytest.mark.parametrize("policy", ["retry", "hedge", "parity", "auto", "replicate"])
def test_an_invalid_query_fails_at_once(policy: str):
    story = Script(4, policy=policy)
    story.query(1)
    actions = story.answer(1, ErrorKind.INVALID, message="shape [2] is not [3]")
    fail = only(actions, ac.Fail)
    assert (fail.status, fail.message) == ("INVALID_ARGUMENT", "shape [2] is not [3]")
    assert none_of(actions, ac.Send, ac.Probe)


def test_overload_of_a_worker_is_never_retried_and_says_when_to_come_back():
    story = Script(2, policy="retry")
    story.query(1)
    actions = story.answer(1, ErrorKind.OVERLOADED)
    fail = only(actions, ac.Fail)
    assert fail.status == "RESOURCE_EXHAUSTED"
    assert fail.retry_after_s
    assert none_of(actions, ac.Send, ac.Probe)


def test_two_failures_of_one_query_wait_as_one_retry():
    story = Script(3, policy="hedge", retry_max=2, hedge_delay_s=0.01, idle_reserve=0)
    story.query(1)
    story.query(2)
    story.advance(0.01)
    assert story.sends(1)[1].source is Source.HEDGE
    story.query(3)
    story.answer(1, ErrorKind.UNAVAILABLE)
    story.answer(1, ErrorKind.UNAVAILABLE)
    story.answer(2)
    assert story.sends(1)[2].source is Source.RETRY
    assert only(story.answer(1, ErrorKind.INTERNAL), ac.Send).query == 1
    assert only(story.answer(1, ErrorKind.INTERNAL), ac.Fail).query == 1


def test_a_full_queue_refuses_with_a_delay():
    story = Script(1, policy="retry", queue_max=2)
    for query in (1, 2, 3):
        story.query(query)
    fail = only(story.query(4), ac.Fail)
    assert fail.status == "RESOURCE_EXHAUSTED"
    assert "limit" in fail.message
    assert "2" in fail.message
    assert fail.retry_after_s == pytest.approx(2 * story.engine.state.latency.quantile(0.5))


def test_a_deadline_that_has_passed_on_arrival_fails_without_work():
    story = Script(2)
    actions = story.query(1, deadline=0.0)
    assert only(actions, ac.Fail).status == "DEADLINE_EXCEEDED"
    assert none_of(actions, ac.Send, ac.SetTimer)


def test_the_deadline_of_a_queued_query_fails_it():
    story = Script(1, policy="none")
    story.query(1)
    story.query(2, deadline=0.1)
    story.advance(0.2)
    assert story.ends[2].status == "DEADLINE_EXCEEDED"
    assert story.ended_at[2] == pytest.approx(0.1)
    assert none_of(story.answer(1), ac.Send)


def test_without_workers_the_deadline_says_so():
    story = Script(0)
    story.query(1, deadline=0.1)
    story.advance(0.2)
    assert story.ends[1].status == "UNAVAILABLE"


def test_a_late_answer_after_the_deadline_is_no_second_reply():
    story = Script(2, policy="none")
    story.query(1, deadline=0.1)
    story.advance(0.1)
    assert story.ends[1].status == "DEADLINE_EXCEEDED"
    assert none_of(story.answer(1), ac.Reply, ac.Fail)


def test_a_cancelled_query_gets_no_reply_and_frees_its_place_in_the_queue():
    story = Script(1, policy="none")
    story.query(1)
    story.query(2)
    assert only(story.feed(ev.QueryCancelled(2)), ac.Release).query == 2
    assert none_of(story.feed(ev.QueryCancelled(1)), ac.Cancel)
    assert none_of(story.answer(1), ac.Reply, ac.Fail, ac.Send)
    assert story.engine.state.stats.failed["CANCELLED"] == 2
    assert story.feed(ev.QueryCancelled(1)) == []


def test_only_attempts_that_wait_at_a_worker_are_cancelled_each_by_its_id():
    story = Script(1, policy="none", inflight_max=2)
    begun = only(story.query(1), ac.Send)
    waiting = only(story.query(2), ac.Send)
    assert begun.worker == waiting.worker
    assert only(story.feed(ev.QueryCancelled(2)), ac.Cancel) == ac.Cancel(waiting.attempt)
    assert only(story.query(3), ac.Send).worker == begun.worker
    assert none_of(story.feed(ev.QueryCancelled(1)), ac.Cancel)


def test_the_policy_of_one_query_can_differ():
    story = Script(2, policy="retry")
    story.query(1, policy="none")
    assert only(story.answer(1, ErrorKind.INTERNAL), ac.Fail).query == 1
