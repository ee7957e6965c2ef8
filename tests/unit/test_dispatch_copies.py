"""Copies of a query (replicate, hedge), what `auto` makes of both worlds, and online quality."""

from __future__ import annotations

import pytest

from fakes.script import PRIOR_S, SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind
from proa.dispatch.policy import IMPOSSIBLE
from proa.dispatch.quality import SAMPLES_MIN
from proa.dispatch.timers import HedgeTimer

LATE = "of the answers are late"


# --- replicate and hedge


def test_replicate_sends_r_copies_at_once_each_in_a_domain_of_its_own():
    story = Script(5, policy="replicate", r=2, idle_reserve=0)
    sends = [a for a in story.query(1) if isinstance(a, ac.Send)]
    assert [s.source for s in sends] == [Source.WORKER, Source.REPLICA, Source.REPLICA]
    assert len({s.worker for s in sends}) == 3
    assert only(story.answer(1, worker=sends[2].worker), ac.Reply).source is Source.REPLICA
    assert none_of(story.answer(1), ac.Reply)


def test_replicate_only_uses_workers_beyond_the_reserve():
    story = Script(2, policy="replicate", r=1, idle_reserve=1)
    assert len([a for a in story.query(1) if isinstance(a, ac.Send)]) == 1


def test_a_hedge_goes_elsewhere_after_the_configured_delay():
    story = Script(3, policy="hedge", hedge_delay_s=0.015)
    story.query(1)
    assert none_of(story.advance(0.014), ac.Send)
    hedge = only(story.advance(0.002), ac.Send)
    assert hedge.source is Source.HEDGE
    assert hedge.worker != story.where(1)
    assert story.at(hedge) == pytest.approx(0.015)
    assert only(story.answer(1, worker=hedge.worker), ac.Reply).source is Source.HEDGE


def test_the_adaptive_delay_follows_what_answers_take():
    story = Script(3, policy="hedge")
    story.query(1)
    assert story.timer(HedgeTimer) == pytest.approx(PRIOR_S)
    story.answer(1)
    story.warm_up()
    story.query(2)
    assert story.timer(HedgeTimer) - story.now == pytest.approx(1.15 * SERVICE_S)


def two_in_order(policy: str) -> Script:
    """Query 1 and, clearly later, 2; now 1 is late by p95, which is its least bound."""
    story = Script(4, policy=policy)
    story.warm_up()
    story.query(1)
    story.advance(0.3 * SERVICE_S)
    story.query(2)
    assert none_of(story.advance(0.9 * SERVICE_S), ac.Send)
    return story


@pytest.mark.parametrize("policy", ["hedge", "auto"])
def test_a_late_query_is_hedged_once_it_is_overtaken(policy: str):
    hedge = only(two_in_order(policy).answer(2), ac.Send)
    assert (hedge.query, hedge.source) == (1, Source.HEDGE)


def test_late_answers_that_come_in_order_are_not_hedged():
    story = two_in_order("hedge")
    assert none_of(story.answer(1) + story.advance(0.2 * SERVICE_S) + story.answer(2), ac.Send)
    assert none_of(story.advance(1.0), ac.Send)


def test_a_query_that_nothing_can_overtake_is_hedged_after_one_and_a_half_medians():
    story = Script(3, policy="hedge")
    story.warm_up()
    story.query(1)
    sent_at = story.now
    hedge = only(story.advance(2 * SERVICE_S), ac.Send)
    assert story.at(hedge) == pytest.approx(sent_at + 1.5 * SERVICE_S)


def test_no_hedge_for_an_answer_that_came_in_time():
    story = Script(3, policy="hedge")
    story.query(1)
    story.answer(1)
    assert none_of(story.advance(1.0), ac.Send)


def hedges(story: Script, queries: int) -> int:
    """How many of so many queries that are all late are hedged."""
    for query in range(queries):
        story.query(query)
        story.advance(0.03)
        for _ in story.sends(query):
            story.answer(query)
    return sum(1 for s in story.every(ac.Send) if s.source is Source.HEDGE)


def test_hedges_keep_within_their_budget():
    assert hedges(Script(3, policy="hedge", hedge_delay_s=0.01, hedge_budget=0.1), 100) <= 15
    assert hedges(Script(3, policy="hedge", hedge_delay_s=0.01, hedge_budget=1.0), 100) == 100
    assert hedges(Script(3, policy="hedge", hedge_delay_s=0.01, hedge_budget=0.0), 100) == 0


def test_a_hedge_may_use_the_reserve_but_no_busy_worker():
    story = Script(2, policy="hedge", hedge_delay_s=0.01, idle_reserve=1)
    story.query(1)
    assert only(story.advance(0.02), ac.Send).source is Source.HEDGE
    story = Script(1, policy="hedge", hedge_delay_s=0.01, idle_reserve=1)
    story.query(1)
    assert none_of(story.advance(0.02), ac.Send)
    assert only(story.join("w2"), ac.Send).source is Source.HEDGE


def coded_and_hedged(**config: object) -> Script:
    """Under `auto` with stragglers: queries 1 and 2 make a group, its parity runs."""
    story = Script(6, **{"policy": "auto", "k": 2, "hedge_budget": 1.0, **config})
    with_stragglers(story)
    story.query(1)
    story.query(2)
    assert only(story.every(ac.SendParity), ac.SendParity).members == (1, 2)
    return story


def with_stragglers(story: Script) -> None:
    story.warm_up(94)
    story.straggle(3)


def test_a_hedge_waits_for_a_reconstruction_that_is_about_to_come():
    story = coded_and_hedged()
    story.advance(0.010)
    story.parity()
    story.answer(1)
    actions = story.advance(0.014)  # late now
    assert only(actions, ac.Decode).missing == (1,)
    assert none_of(actions, ac.Send)
    decode = only(actions, ac.Decode)
    assert only(story.decoded(decode), ac.Reply).source is Source.RECONSTRUCTED
    assert none_of(story.advance(1.0), ac.Send)


def test_a_hedge_waits_until_parity_itself_is_late():
    story = Script(6, policy="auto", k=2, hedge_budget=1.0)
    with_stragglers(story)
    story.query(1)
    story.advance(0.004)
    story.query(2)
    story.advance(0.002)
    story.query(3, policy="none")
    story.advance(0.008)
    story.answer(2)
    story.answer(3)  # overtakes 1
    hedge = only(story.advance(0.5), ac.Send)
    parity = only(story.every(ac.SendParity), ac.SendParity)
    assert story.at(hedge) == pytest.approx(story.at(parity) + 1.15 * SERVICE_S)


def test_a_hedge_goes_soon_after_a_decode_that_failed():
    story = coded_and_hedged()
    story.parity()
    story.answer(1)
    decode = only(story.advance(0.025), ac.Decode)
    story.decoded(decode, ok=False)
    assert only(story.advance(0.030), ac.Send).source is Source.HEDGE


def test_a_query_that_wants_an_exact_answer_is_hedged_in_time():
    story = Script(6, policy="auto", k=2, hedge_budget=1.0)
    with_stragglers(story)
    story.query(1, exact=True)
    story.query(2)
    story.answer(2)
    story.parity()
    story.advance(0.006)
    story.query(3, policy="none")
    story.answer(3)  # overtakes 1
    assert only(story.advance(0.018), ac.Send).source is Source.HEDGE


# --- auto


def test_auto_only_hedges_while_all_is_calm():
    story = Script(6, policy="auto", k=2)
    story.warm_up()
    story.query(1)
    assert none_of(story.query(2), ac.SendParity)
    plan = story.engine.in_force()
    assert (plan.hedge, plan.parity) == (True, False)
    assert plan.why == f"hedge only: 0.0% {LATE}"


def test_auto_codes_once_one_answer_in_a_hundred_is_late_and_stops_when_none_is():
    story = Script(6, policy="auto", k=2)
    story.warm_up(20)
    story.straggle(2)
    assert not story.engine.in_force().parity, "two of 256 are less than one in a hundred"
    story.straggle()
    plan = story.engine.in_force()
    assert (plan.hedge, plan.parity) == (True, True)
    assert plan.why == f"parity and hedge: 1.2% {LATE}"
    story.warm_up(100)
    assert story.engine.in_force().parity, "a hundred in time are no calm yet"
    story.warm_up(600)
    assert not story.engine.in_force().parity


def test_auto_does_not_code_because_everything_stood_still():
    story = Script(6, policy="auto", k=2)
    story.warm_up(40)
    for first in range(1, 60, 5):
        for query in range(first, first + 5):
            story.query(query, policy="none")
        story.advance(0.3)
        for query in range(first, first + 5):
            story.answer(query)
        story.warm_up(5)
    assert not story.engine.in_force().parity


def busy_for(story: Script, seconds: float, workers: int) -> None:
    """So many workers are busy with queries all the time."""
    for step in range(int(seconds / SERVICE_S)):
        for i in range(workers):
            story.query(1000 * step + i, key="busy", policy="none")
        story.advance(SERVICE_S)
        for i in range(workers):
            story.answer(1000 * step + i)


def test_auto_does_without_parity_while_the_workers_are_busy():
    story = Script(10, policy="auto", k=2)
    with_stragglers(story)
    busy_for(story, 4.0, workers=10)
    plan = story.engine.in_force()
    assert not plan.parity
    assert plan.why.endswith("of the workers' time is used")
    for _ in range(15):
        story.straggle()
        story.advance(2.0)  # else nobody would be sent to those who straggled
    assert story.engine.in_force().parity


def test_auto_says_why_it_cannot_code():
    assert Script(1, policy="auto").engine.in_force().why == f"hedge only: {IMPOSSIBLE}"
    story = Script(0, policy="auto")
    for worker in ("w0", "w1"):
        story.join(worker, roles=frozenset((ev.DEPLOYED,)))
    assert story.engine.in_force().why == f"hedge only: {IMPOSSIBLE}"
    assert Script(4, policy="parity", parity_possible=False).engine.in_force().why == IMPOSSIBLE


# --- quality


def assess(story: Script, agreement: float, groups: int, *, first: int = 0) -> int:
    """So many pairs of queries come and go, with a straggler now and then; the groups that are
    measured agree so well. Returns how many were measured."""
    measured = 0
    for query in range(first, first + 2 * groups, 2):
        if query % 50 == 0:
            story.straggle()
        actions = story.query(query) + story.query(query + 1) + story.advance(0.006)
        while any(isinstance(s, ac.SendParity) for s in story.running.values()):
            actions += story.parity()
        story.advance(0.014)
        actions += story.answer(query) + story.answer(query + 1)
        for action in [a for a in actions if isinstance(a, ac.Assess)]:
            story.feed(ev.Assessed(action.group, agreement))
            measured += 1
    return measured


@pytest.mark.parametrize("policy", ["parity", "auto"])
def test_low_agreement_switches_reconstruction_off_and_measuring_switches_it_on(policy: str):
    story = Script(6, policy=policy, k=2, quality_sample=0.5, agreement_min=0.9)
    with_stragglers(story)
    bad = assess(story, 0.5, 2 * SAMPLES_MIN + 2)
    assert SAMPLES_MIN <= bad <= SAMPLES_MIN + 2
    plan = story.engine.in_force()
    assert (plan.parity, plan.measure) == (False, True)
    assert "agree too rarely" in plan.why
    # A mean of 0.9 is not enough to be trusted again: 0.92 is.
    good = assess(story, 1.0, 4 * bad, first=10_000)
    assert story.engine.state.quality.agreement >= 0.9
    assert story.engine.state.quality.low
    good += assess(story, 1.0, 2 * bad, first=20_000)
    assert story.engine.state.quality.agreement > 0.92
    assert story.engine.in_force().parity


def test_while_agreement_is_low_a_failed_query_is_not_reconstructed():
    story = Script(4, policy="parity", k=2, quality_sample=1.0, retry_max=0)
    assess(story, 0.0, SAMPLES_MIN)
    assert story.engine.state.quality.low
    story.query(1001)
    story.query(1002)
    story.parity()
    story.answer(1001)
    actions = story.answer(1002, ErrorKind.INTERNAL)
    assert none_of(actions, ac.Decode)
    assert only(actions, ac.Fail).query == 1002


def test_a_measured_group_waits_for_its_parity_and_every_member():
    story = Script(4, policy="parity", k=2, quality_sample=1.0)
    story.query(1)
    story.query(2)
    story.answer(1)
    assert none_of(story.answer(2), ac.Assess, ac.ForgetGroup)
    assess_it = only(story.parity(), ac.Assess)
    assert assess_it.members == (1, 2)
    done = story.feed(ev.Assessed(assess_it.group, None))
    assert only(done, ac.ForgetGroup)
    assert story.engine.state.quality.agreement is None


def test_what_was_reconstructed_is_assessed_once_the_exact_answer_is_there():
    story = Script(4, policy="parity", k=2, patience="first", quality_sample=0.0)
    story.query(1)
    story.query(2)
    story.parity()
    decode = only(story.answer(1), ac.Decode)
    assert none_of(story.decoded(decode), ac.Assess)
    assert only(story.answer(2), ac.Assess).members == (1, 2)
