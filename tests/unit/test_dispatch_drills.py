"""Drills: queries that are answered from the code on purpose."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.drills import DEADLINE_SHARE, DRILL_S_MIN
from proa.dispatch.events import ErrorKind
from proa.dispatch.timers import DrillTimer

GROUP_S = 0.005


def drill(workers: int = 4, *, known: int = 3, **config: Any) -> Script:
    """`known` usual queries are answered, then query 1 is a drill."""
    story = Script(workers, k=2, group_s_max=GROUP_S, **{"policy": "none", **config})
    story.warm_up(known, key="m")
    story.query(1, reconstruct=True)
    return story


@pytest.mark.parametrize("policy", ["none", "retry", "hedge", "replicate", "parity", "auto"])
def test_one_query_is_enough(policy: str):
    story = drill(policy=policy)
    parity = only(story.advance(GROUP_S), ac.SendParity)
    assert len(parity.fillers) == 1
    assert none_of(story.advance(SERVICE_S), ac.Reply)
    story.answer(1)
    decode = only(story.parity(), ac.Decode)
    assert decode.members[decode.missing[0]] == 1
    reply = only(story.decoded(decode), ac.Reply)
    assert (reply.query, reply.source, reply.attempt) == (1, Source.RECONSTRUCTED, None)
    assert len(story.sends(1)) == 1


def test_the_exact_answer_is_not_waited_for():
    story = drill()
    story.advance(GROUP_S)
    reply = only(story.decoded(only(story.parity(), ac.Decode)), ac.Reply)
    assert reply.source is Source.RECONSTRUCTED
    # It measures the agreement of the code when it comes.
    assert only(story.answer(1), ac.Assess).members[0] == 1


def test_drills_are_coded_together():
    story = drill(known=0, policy="parity")
    parity = only(story.query(2), ac.SendParity)
    assert parity.members == (1, 2)
    story.answer(2)
    assert only(story.decoded(only(story.parity(), ac.Decode)), ac.Reply).query == 1


@pytest.mark.parametrize("exact_first", [True, False])
def test_a_lost_parity_row_gives_the_exact_answer(exact_first: bool):
    story = drill()
    story.advance(GROUP_S)
    if exact_first:
        assert none_of(story.answer(1), ac.Reply)
        reply = only(story.parity(kind=ErrorKind.INTERNAL), ac.Reply)
    else:
        story.parity(kind=ErrorKind.INTERNAL)
        reply = only(story.answer(1), ac.Reply)
    assert (reply.source, reply.worker) == (Source.WORKER, story.where(1))
    assert reply.attempt is not None


def test_a_failed_decode_gives_the_exact_answer():
    story = drill()
    story.advance(GROUP_S)
    story.answer(1)
    reply = only(story.decoded(only(story.parity(), ac.Decode), ok=False), ac.Reply)
    assert reply.source is Source.WORKER


def test_without_fillers_it_has_the_exact_answer_once_the_group_has_waited():
    story = drill(known=0)
    assert none_of(story.answer(1), ac.Reply)
    assert only(story.advance(GROUP_S), ac.Reply).source is Source.WORKER


def test_without_a_place_for_parity_it_has_the_exact_answer_at_once():
    story = drill(1)
    assert only(story.answer(1), ac.Reply).source is Source.WORKER


def test_a_reconstruction_that_takes_too_long_is_not_waited_for():
    story = drill()
    story.advance(GROUP_S)
    story.answer(1)
    until = story.timer(DrillTimer)
    assert none_of(story.advance(until - story.now - 0.001), ac.Reply)
    assert only(story.advance(0.001), ac.Reply).source is Source.WORKER
    assert none_of(story.parity(), ac.Reply, ac.Decode)


def test_it_ends_before_the_deadline():
    story = drill(known=0)
    story.query(2, key="other", reconstruct=True, deadline=story.now + 0.1)
    assert story.timer(DrillTimer) == pytest.approx(DEADLINE_SHARE * 0.1)


def test_an_answer_after_the_drill_is_given_at_once():
    story = drill()
    story.advance(GROUP_S)
    story.advance(story.timer(DrillTimer) - story.now)
    assert only(story.answer(1), ac.Reply).source is Source.WORKER


def test_a_worker_that_really_dies_is_no_trouble():
    story = drill()
    story.advance(GROUP_S)
    story.feed(ev.WorkerLeft(story.where(1)))
    assert only(story.decoded(only(story.parity(), ac.Decode)), ac.Reply).query == 1


def test_a_drill_that_is_cancelled_leaves_nothing():
    story = drill()
    story.advance(GROUP_S)
    story.answer(1)
    story.feed(ev.QueryCancelled(1))
    story.parity()
    assert 1 not in story.ends
    assert not story.engine.state.attempts


@pytest.mark.parametrize(
    ("config", "query"),
    [
        ({"mode": "observe"}, {}),
        ({"parity_possible": False}, {}),
        ({}, {"exact": True}),
        ({}, {"codable": False}),
    ],
)
def test_where_nothing_can_be_coded_it_is_a_query_like_any(config: Any, query: Any):
    story = Script(4, policy="none", k=2, **config)
    story.query(1, reconstruct=True, **query)
    assert only(story.answer(1), ac.Reply).source is Source.WORKER


def test_distrusted_reconstructions_are_not_given():
    story = drill()
    story.advance(GROUP_S)
    story.engine.state.quality.low = True
    assert only(story.answer(1), ac.Reply).source is Source.WORKER


def test_two_workers_and_other_frontends_are_no_obstacle():
    story = Script(2, policy="none", k=2, group_s_max=GROUP_S, idle_reserve=1)
    story.feed(ev.FrontendsChanged(2, 1))
    story.warm_up(3, key="m")
    story.query(1, reconstruct=True)
    story.advance(GROUP_S)
    assert only(story.decoded(only(story.parity(), ac.Decode)), ac.Reply).query == 1


def test_a_fast_model_is_given_time_enough():
    story = Script(4, policy="none", k=2)
    story.warm_up(service_s=0.001)
    story.query(1, reconstruct=True)
    assert story.timer(DrillTimer) - story.now >= DRILL_S_MIN
