"""Several frontends: load by others, and the room that they share."""

from __future__ import annotations

import pytest

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.redundancy import TURN_S, FrontendShare
from proa.dispatch.workers import HOME_MIN, LOAD_DECAY_S


def loaded(story: Script, **loads: float) -> None:
    """One query to each worker, whose answer tells its load."""
    for query in range(900, 900 + len(loads)):
        story.query(query, key="load", policy="none", codable=False)
    story.advance(SERVICE_S)
    for attempt, sent in list(story.running.items()):
        del story.running[attempt]
        story.feed(ev.Answered(attempt, ok=True, load=loads[sent.worker]))


def shares(count: int) -> list[FrontendShare]:
    found = [FrontendShare() for _ in range(count)]
    for index, share in enumerate(found):
        share.change(count, index, 5.0 + index)  # their clocks do not agree
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("room", [0, 1, 2, 4, 7])
def test_all_parts_are_the_room_of_one(count: int, room: int):
    parts = shares(count)
    for turn in range(2 * count):
        given = [s.of(room, 5.0 + i + turn * TURN_S) for i, s in enumerate(parts)]
        assert sum(given) == room
        assert max(given) - min(given) <= 1


def test_everyone_has_a_turn():
    for i, share in enumerate(shares(4)):
        assert sum(share.of(1, 5.0 + i + turn * TURN_S) for turn in range(4)) == 1


def test_news_that_are_none_leave_the_turns_alone():
    share = FrontendShare()
    assert share.change(2, 1, 10.0)
    assert not share.change(2, 1, 10.5)
    assert share.of(1, 10.9) == 0
    assert share.of(1, 11.0) == 1


def test_an_idle_worker_with_less_foreign_load_comes_first():
    story = Script(3, policy="none")
    loaded(story, w0=0.6, w1=0.1, w2=0.4)
    order = [only(story.query(query), ac.Send).worker for query in range(3)]
    assert order == ["w1", "w2", "w0"]


def test_a_slow_worker_is_worse_than_a_loaded_one():
    story = Script(2, policy="none")
    story.warm_up()
    first, second = (only(story.query(q), ac.Send).worker for q in (1, 2))
    story.advance(SERVICE_S)
    story.feed(ev.Answered(next(iter(story.running)), ok=True, load=0.5))
    story.advance(2 * SERVICE_S)
    story.answer(2)
    assert only(story.query(3), ac.Send).worker == first != second


def test_news_of_load_grow_old():
    story = Script(2, policy="none")
    loaded(story, w0=0.5, w1=0.0)
    worker = story.engine.state.workers.get("w0")
    assert worker is not None
    assert worker.foreign(story.now) == 0.5
    assert worker.foreign(story.now + 5 * LOAD_DECAY_S) < 0.01


def test_foreign_load_counts_as_utilisation():
    story = Script(2, policy="auto")
    loaded(story, w0=0.8, w1=0.6)
    for _ in range(100):
        story.advance(0.05)
        story.feed(ev.WorkerSuspected("nobody"))
    assert 0.3 < story.engine.utilisation.value < 0.7


def test_workers_that_others_use_are_not_spare():
    busy, quiet = (Script(4, policy="parity", k=2) for _ in range(2))
    loaded(busy, w0=0.4, w1=0.4, w2=0.4, w3=0.4)
    loaded(quiet, w0=0.1, w1=0.1, w2=0.1, w3=0.1)
    for story, sent in ((busy, False), (quiet, True)):
        story.query(1)
        assert none_of(story.query(2), ac.SendParity) != sent


def test_the_room_for_redundant_work_is_divided():
    rows = {}
    for count in (1, 4):
        story = Script(10, policy="parity", k=2, r=1, idle_reserve=0)
        story.feed(ev.FrontendsChanged(count, count - 1))
        for query in range(6):
            story.query(query)
        rows[count] = len(story.every(ac.SendParity))
    assert rows == {1: 3, 4: 2}


def test_redundant_work_takes_turns_where_there_is_too_little_room():
    story = Script(3, policy="parity", k=2, idle_reserve=0)
    story.feed(ev.FrontendsChanged(2, 1))
    story.query(1, deadline=5.0)
    assert none_of(story.query(2, deadline=5.0), ac.SendParity)
    assert only(story.advance(TURN_S), ac.SendParity).worker == "w2"


def test_frontends_prefer_different_workers():
    homes = []
    for index in range(3):
        story = Script(9, policy="none")
        story.feed(ev.FrontendsChanged(3, index))
        homes.append({only(story.query(query), ac.Send).worker for query in range(3)})
    assert set.union(*homes) == {f"w{i}" for i in range(9)}


def test_a_preference_is_no_limit():
    story = Script(4, policy="none")
    story.feed(ev.FrontendsChanged(4, 3))
    assert {only(story.query(q), ac.Send).worker for q in range(HOME_MIN)} == {"w3", "w0", "w1"}
    assert only(story.query(9), ac.Send).worker == "w2"


def test_one_frontend_alone_prefers_none():
    story = Script(4, policy="none")
    story.feed(ev.FrontendsChanged(2, 1))
    story.feed(ev.FrontendsChanged(1, 0))
    assert {only(story.query(q), ac.Send).worker for q in range(4)} == {"w0", "w1", "w2", "w3"}
