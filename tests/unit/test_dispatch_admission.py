"""Admission: who may wait in the queue, who is refused, and what the refused are told."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind


def warm(workers: int = 1, **config: object) -> Script:
    """Answers took 20 ms lately."""
    story = Script(workers, **{"policy": "none", **config})
    story.warm_up()
    return story


def serve(story: Script) -> list[ac.Action]:
    """Everything that runs is answered after 20 ms."""
    story.advance(SERVICE_S)
    running = [send.query for send in story.running.values()]
    return [action for query in running for action in story.answer(query)]


def refusal(actions: list[ac.Action]) -> ac.Fail:
    found = only(actions, ac.Fail)
    assert found.status == "RESOURCE_EXHAUSTED"
    assert "overloaded" in found.message
    assert none_of(actions, ac.Send, ac.SetTimer)
    return found


def test_a_query_that_would_be_answered_too_late_is_refused_at_once():
    story = warm()
    for query in range(5):
        story.query(query)
    # 4 wait, and one answer takes 20 ms: 100 ms, and a tenth for what is not known.
    assert none_of(story.query(5, deadline=story.now + 0.111), ac.Fail)
    refused = refusal(story.query(6, deadline=story.now + 0.111))
    assert "5 queries wait" in refused.message
    assert "132 ms" in refused.message
    assert story.engine.queue_depth == 5


def test_the_delay_is_the_time_in_which_the_queue_is_served():
    story = warm(2)
    for query in range(8):
        story.query(query)
    delay_s = refusal(story.query(8, deadline=story.now + 0.050)).retry_after_s
    assert delay_s == pytest.approx(6 * SERVICE_S / 2)
    for _ in range(3):
        serve(story)
    assert none_of(story.query(9, deadline=story.now + 0.050), ac.Fail)
    assert only(serve(story), ac.Send).query == 9


def test_while_a_place_is_free_nobody_is_refused():
    story = warm(2, inflight_max=2)
    for query in range(4):
        assert only(story.query(query, deadline=story.now + 0.001), ac.Send).query == query
    refusal(story.query(4, deadline=story.now + 0.001))


def test_a_burst_that_can_be_served_is_served():
    story = warm(6)
    for query in range(100):
        story.query(query, deadline=story.now + 0.5)
    while story.running:
        serve(story)
    assert all(isinstance(story.ends[query], ac.Reply) for query in range(100))


def test_before_there_is_data_nobody_is_refused():
    story = Script(1, policy="none", latency_prior_s=10.0)
    for query in range(10):
        assert none_of(story.query(query, deadline=story.now + 0.2), ac.Fail)
    story.advance(0.19)
    assert only(story.answer(0), ac.Send).query == 1


def test_without_workers_queries_wait_for_one():
    story = warm()
    story.feed(ev.WorkerLeft("w0"))
    for query in range(10):
        assert none_of(story.query(query, deadline=story.now + 0.05), ac.Fail)
    assert only(story.join("w0"), ac.Send).query == 0
    story.feed(ev.WorkerLeft("w0"))
    story.advance(0.1)
    assert story.ends[5].status == "UNAVAILABLE"


def test_workers_that_drain_do_not_count():
    story = warm(2)
    for query in range(6):
        story.query(query)
    story.feed(ev.WorkerDraining("w1"))
    # 4 wait for one worker, not two: 100 ms instead of 60.
    refusal(story.query(6, deadline=story.now + 0.080))


def test_who_has_waited_too_long_makes_room_and_is_told_to_back_off():
    story = warm()
    story.query(1)
    story.query(2, deadline=story.now + 0.045)
    story.query(3)
    story.advance(0.030)  # the worker is late
    actions = story.answer(1)
    fail = only(actions, ac.Fail)
    assert (fail.query, fail.status) == (2, "RESOURCE_EXHAUSTED")
    assert fail.retry_after_s == pytest.approx(2 * SERVICE_S, rel=0.05)
    assert only(actions, ac.Send).query == 3
    story.advance(1.0)
    assert story.ends[2] is fail


def test_who_can_still_make_it_is_sent():
    story = warm()
    story.query(1)
    story.query(2, deadline=story.now + 0.045)
    story.advance(0.024)
    assert only(story.answer(1), ac.Send).query == 2


def test_what_workers_were_long_ago_does_not_count():
    story = warm(queue_max=100)
    story.warm_up(200, service_s=0.5, deadline=1000.0)
    story.query(1)
    refusal(story.query(2, deadline=story.now + 0.3))
    story.answer(1)
    story.warm_up(64, deadline=1000.0)
    for query in range(3, 8):
        assert none_of(story.query(query, deadline=story.now + 0.3), ac.Fail)


def test_one_answer_that_was_stuck_does_not_refuse_others():
    story = warm()
    story.warm_up(1, service_s=60.0, deadline=1000.0)
    story.query(1)
    for query in range(2, 6):
        assert none_of(story.query(query, deadline=story.now + 0.2), ac.Fail)


def test_a_retry_is_not_refused_and_counts_as_one_that_waits():
    story = warm(2, policy="retry")
    for query in (1, 2, 3):
        story.query(query, deadline=story.now + 0.030)
    story.answer(1, ErrorKind.UNAVAILABLE)
    assert story.engine.queue_depth == 2
    story.advance(0.015)
    assert only(story.answer(2), ac.Send).source is Source.RETRY
