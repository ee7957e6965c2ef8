"""Turns: a query waits for a fast worker that is busy rather than go to a slow one that is idle."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch.actions import Source
from proa.dispatch.workers import Worker

# What is left after half a second of the lag that `Script.straggle` makes, in seconds.
LAG_S = 0.0147
SOON_S = SERVICE_S - 0.5 * LAG_S


def with_a_straggler(workers: int = 2, **config: object) -> tuple[Script, Worker]:
    """One worker was late a while ago, and was slow ever since for all that is known."""
    story = Script(workers, **{"policy": "none", **config})
    story.warm_up()
    story.straggle()
    (slow,) = [worker for worker in story.engine.state.workers if worker.straggled]
    assert slow.score_s(story.now) == pytest.approx(LAG_S, rel=0.01)
    return story, slow


def test_who_would_be_late_at_an_idle_worker_waits_for_a_busy_one():
    story, slow = with_a_straggler()
    assert only(story.query(1), ac.Send).worker != slow.id
    story.advance(SOON_S)
    assert none_of(story.query(2), ac.Send)
    story.advance(SERVICE_S - SOON_S)
    assert only(story.answer(1), ac.Send).worker == story.where(1)


def test_who_would_wait_longer_than_that_one_lags_goes_there():
    story, slow = with_a_straggler()
    story.query(1)
    assert only(story.query(2), ac.Send).worker == slow.id


def test_who_waits_goes_there_when_the_busy_one_is_late_itself():
    story, slow = with_a_straggler()
    story.query(1)
    story.advance(SOON_S)
    story.query(2)
    send = only(story.advance(2 * SERVICE_S), ac.Send)
    assert send.worker == slow.id
    assert story.at(send) == pytest.approx(story.now - 2 * SERVICE_S + 1.15 * SERVICE_S)


def test_each_turn_is_for_one():
    story, slow = with_a_straggler(3)
    story.query(1)
    story.query(2)
    story.advance(SOON_S)
    assert none_of(story.query(3) + story.query(4), ac.Send)
    assert only(story.query(5), ac.Send).worker == slow.id
    story.advance(SERVICE_S - SOON_S)
    assert only(story.answer(2), ac.Send).query == 3
    assert only(story.answer(1), ac.Send).query == 4


def test_under_auto_it_is_tied_to_the_one_it_waits_for():
    story, _ = with_a_straggler(policy="auto")
    story.query(1)
    story.advance(SOON_S)
    ahead = only(story.query(2), ac.Send)
    assert (ahead.worker, ahead.source) == (story.where(1), Source.WORKER)
    assert story.engine.state.stats.tied["sent"] == 1
    assert none_of(story.query(3), ac.Cancel)


def test_where_the_queue_is_full_nobody_waits_for_a_turn():
    story, slow = with_a_straggler(3, queue_max=1)
    story.query(1)
    story.query(2)
    story.advance(SOON_S)
    assert none_of(story.query(3), ac.Send)
    sent = only(story.query(4), ac.Send)
    assert (sent.query, sent.worker) == (3, slow.id)


def test_an_answer_in_time_ends_it():
    story, slow = with_a_straggler()
    story.query(1)
    story.query(2)
    assert story.where(2) == slow.id
    story.advance(SERVICE_S)
    story.answer(1)
    story.answer(2)
    assert not slow.straggled
    story.query(3)
    story.advance(SOON_S)
    assert only(story.query(4), ac.Send)


def test_what_is_avoided_counts_once_as_late():
    story, _ = with_a_straggler(3)
    before = story.engine.state.stragglers.share()
    story.query(1)
    story.query(2)
    story.advance(SOON_S)
    story.query(3)
    story.query(4)
    assert story.engine.state.stragglers.share() == pytest.approx(before + 1 / 256)


def test_all_are_late_at_once_makes_no_straggler():
    story = Script(2, policy="none")
    story.warm_up()
    story.query(1)
    story.query(2)
    story.advance(5 * SERVICE_S)
    story.answer(1)
    story.answer(2)
    assert not any(worker.straggled for worker in story.engine.state.workers)
    story.query(3)
    story.advance(SOON_S)
    assert only(story.query(4), ac.Send)
