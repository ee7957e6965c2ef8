"""Parity of a group that was filled costs as much as a copy: when `auto` sends it."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, only
from proa.dispatch import actions as ac
from proa.dispatch.events import ErrorKind
from proa.dispatch.latency import LATE_MIN


def lone_query(**config: object) -> Script:
    """Under `auto` with stragglers: query 1 is alone in its group, which was filled just now."""
    story = Script(6, **{"policy": "auto", "k": 2, "group_s_max": 0.004, **config})
    story.warm_up(94)
    story.straggle(3)
    story.warm_up(2, key="m")
    story.query(1)
    story.advance(0.005)
    return story


def test_auto_sends_parity_that_costs_as_much_as_a_copy_once_its_query_is_late():
    story = lone_query()
    sent_at = story.now - 0.005
    assert story.every(ac.SendParity) == []
    parity = only(story.advance(0.5), ac.SendParity)
    assert len(parity.fillers) == 1
    assert story.at(parity) == pytest.approx(sent_at + LATE_MIN * SERVICE_S)


def test_auto_sends_none_for_a_lone_query_that_is_answered_in_time():
    story = lone_query()
    story.answer(1)
    story.advance(0.5)
    assert story.every(ac.SendParity) == []
    assert story.engine.coding.groups == {}


def test_auto_sends_it_at_once_where_the_query_is_at_risk():
    story = lone_query()
    story.engine.state.workers.get(story.where(1)).note(SERVICE_S, story.now)
    assert only(story.query(2, policy="none"), ac.SendParity).members[0] == 1


def test_auto_sends_it_at_once_where_nothing_else_can_answer():
    story = lone_query(retry_max=0)
    assert only(story.answer(1, ErrorKind.UNAVAILABLE), ac.SendParity).members[0] == 1


@pytest.mark.parametrize(
    "config",
    [{"policy": "parity"}, {"patience": "first"}, {"quality_sample": 1.0}, {"r": 1, "k": 3}],
)
def test_other_parity_is_not_delayed(config: dict[str, object]) -> None:
    """Of a policy that is not thrifty; wanted first; to be measured; of more queries than rows."""
    story = Script(6, **{"policy": "auto", "k": 2, "group_s_max": 0.004, **config})
    story.warm_up(94)
    story.straggle(3)
    story.warm_up(2, key="m")
    story.query(1)
    if config.get("k") == 3:
        story.query(2)
    assert only(story.advance(0.005), ac.SendParity).members[0] == 1
