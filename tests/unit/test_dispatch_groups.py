"""Coding groups: who joins, when they close, where parity runs, when it is decoded."""

from __future__ import annotations

import pytest

from fakes.script import PRIOR_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind
from proa.dispatch.timers import CloseTimer, PatienceTimer


def closed_group(**config: object) -> Script:
    """Queries 1 and 2 make a group of two whose parity runs on the third of four workers."""
    story = Script(4, **{"policy": "parity", "k": 2, **config})
    story.query(1)
    story.query(2)
    assert story.every(ac.SendParity)
    return story


# --- who joins


def test_a_group_closes_as_soon_as_k_queries_have_come():
    story = Script(5, policy="parity", k=3)
    assert none_of(story.query(1) + story.query(2), ac.SendParity)
    parity = only(story.query(3), ac.SendParity)
    assert parity.members == (1, 2, 3)
    assert parity.fillers == frozenset()


def test_only_like_is_grouped_with_like():
    story = Script(6, policy="parity", k=2)
    story.query(1, key=("m", "one tenant"))
    assert none_of(story.query(2, key=("m", "another tenant")), ac.SendParity)
    assert only(story.query(3, key=("m", "one tenant")), ac.SendParity).members == (1, 3)


def test_members_of_one_failure_domain_go_to_different_groups():
    story = Script(0, policy="parity", k=2, idle_reserve=0)
    for worker, domain in (("w0", "left"), ("w1", "left"), ("w2", "right"), ("w3", "up")):
        story.join(worker, domain)
    for query in (1, 2):
        story.query(query)
    assert story.every(ac.SendParity) == []
    story.query(3)
    assert [p.members for p in story.every(ac.SendParity)] == [(1, 3)]


def test_queries_that_cannot_be_coded_join_no_group():
    story = Script(4, policy="parity", k=2)
    assert none_of(story.query(1, codable=False) + story.query(2), ac.SendParity)
    assert [g.members for g in story.engine.coding.groups.values()] == [[2]]


def test_versions_are_never_mixed():
    story = Script(0, policy="parity", k=2)
    for worker, package in (("w0", "old"), ("w1", "new"), ("w2", "old"), ("w3", "old")):
        story.join(worker, package=package)
    story.query(1)
    assert none_of(story.query(2), ac.SendParity)
    groups = story.engine.coding.groups.values()
    assert {g.package: g.members for g in groups} == {"old": [1], "new": [2]}


def test_parity_runs_only_on_the_version_of_its_members():
    story = Script(0, policy="parity", k=2, idle_reserve=0)
    for worker in ("w0", "w1"):
        story.join(worker, package="old")
    story.query(1)
    story.query(2)
    assert none_of(story.join("w2", package="new"), ac.SendParity)
    assert only(story.join("w3", package="old"), ac.SendParity).worker == "w3"


# --- closing


def test_a_partial_group_is_filled_with_answered_queries_after_group_s_max():
    story = Script(4, policy="parity", k=3, group_s_max=0.005)
    for query in (1, 2):
        story.query(query, policy="none")
        story.advance(0.02)
        story.answer(query)
    story.query(3)
    closes = story.timer(CloseTimer)
    assert closes == pytest.approx(story.now + 0.005)
    assert none_of(story.advance(0.004), ac.SendParity)
    parity = only(story.advance(0.002), ac.SendParity)
    assert (parity.members, parity.fillers) == ((3, 2, 1), frozenset((1, 2)))


def test_without_enough_fillers_a_group_stays_open_and_a_later_query_completes_it():
    story = Script(4, policy="parity", k=2, group_s_max=0.005)
    story.query(1)
    assert none_of(story.advance(0.010), ac.SendParity)
    assert only(story.query(2), ac.SendParity).members == (1, 2)


def test_fillers_come_from_the_same_tenant_only():
    story = Script(4, policy="parity", k=2)
    story.warm_up(5, key="other")
    story.query(1)
    assert none_of(story.advance(0.010), ac.SendParity)


def test_the_error_of_a_lone_query_is_not_turned_into_a_passed_deadline():
    story = Script(3, policy="parity", k=2, group_s_max=0.005)
    story.query(1)
    story.answer(1, ErrorKind.INTERNAL)
    story.answer(1, ErrorKind.INTERNAL, message="output is NaN")
    assert 1 not in story.ends  # another query may still complete the group
    story.advance(0.010)
    assert story.ends[1].message == "output is NaN"
    assert story.ended_at[1] == pytest.approx(0.005)


def test_a_group_whose_members_are_all_answered_is_forgotten_without_parity():
    story = Script(2, policy="parity", k=2, group_s_max=1.0)
    story.query(1)
    assert only(story.answer(1), ac.ForgetGroup)
    assert story.engine.state.stats.groups["abandoned"] == 1


# --- where parity runs


def test_parity_goes_to_an_idle_worker_outside_the_domains_of_its_group():
    story = Script(0, policy="parity", k=2, idle_reserve=0)
    for worker, domain in (("w0", "d0"), ("w1", "d1"), ("w2", "d0"), ("w3", "d3")):
        story.join(worker, domain)
    story.query(1)
    story.query(2)
    assert only(story.every(ac.SendParity), ac.SendParity).worker == "w3"


def test_parity_leaves_the_reserve_alone():
    story = Script(4, policy="parity", k=2, idle_reserve=2)
    assert none_of(story.query(1) + story.query(2), ac.SendParity)
    story.join("w4")
    assert story.every(ac.SendParity)


def test_parity_waits_until_a_worker_is_idle_and_is_dropped_when_unwanted():
    story = Script(3, policy="parity", k=2, idle_reserve=2)
    story.query(1)
    story.query(2)
    assert len(story.engine.state.redundant) == 1
    assert none_of(story.answer(1) + story.answer(2), ac.SendParity)
    assert len(story.engine.state.redundant) == 0


def test_parity_uses_the_reserve_once_a_member_is_late():
    story = Script(3, policy="parity", k=2, idle_reserve=2)
    story.query(1)
    story.query(2)
    assert none_of(story.advance(0.020), ac.SendParity)
    story.advance(0.011)
    story.answer(1)
    assert only(story.every(ac.SendParity), ac.SendParity).worker == "w2"


def test_parity_that_is_stuck_gives_way_to_a_query_that_waits():
    story = Script(3, policy="parity", k=2, idle_reserve=0)
    story.query(1)
    parity = only(story.query(2), ac.SendParity)
    story.advance(PRIOR_S)
    assert none_of(story.query(3), ac.Send, ac.Cancel)
    story.advance(1.5 * PRIOR_S)
    actions = story.query(4)
    assert only(actions, ac.Cancel).attempt == parity.attempt
    assert (only(actions, ac.Send).query, only(actions, ac.Send).worker) == (3, parity.worker)
    assert story.engine.state.stats.redundancy_lost == 1


def test_parity_never_runs_while_queries_wait():
    story = Script(2, policy="parity", k=2, idle_reserve=0)
    for query in range(4):
        story.query(query)
    story.answer(0)
    assert story.every(ac.SendParity) == []


def test_a_dedicated_pool_takes_parity_and_nothing_else():
    story = Script(0, policy="parity", k=2, pool="dedicated", idle_reserve=1)
    for worker in ("w0", "w1"):
        story.join(worker, roles=frozenset((ev.DEPLOYED,)))
    story.join("w2", roles=frozenset((ev.PARITY,)))
    story.query(1)
    assert only(story.query(2), ac.SendParity).worker == "w2"
    assert none_of(story.query(3), ac.Send)


def test_each_row_runs_in_a_domain_of_its_own():
    story = Script(6, policy="parity", k=2, r=2)
    story.query(1)
    rows = [a for a in story.query(2) if isinstance(a, ac.SendParity)]
    workers = {story.where(1), story.where(2), *(row.worker for row in rows)}
    assert [row.row for row in rows] == [0, 1]
    assert len(workers) == 4


# --- patience and decoding


def test_patience_first_decodes_as_soon_as_it_can():
    story = closed_group(patience="first")
    story.parity()
    decode = only(story.answer(1), ac.Decode)
    assert (decode.members, decode.missing) == ((1, 2), (1,))
    reply = only(story.decoded(decode), ac.Reply)
    assert (reply.query, reply.source, reply.attempt) == (2, Source.RECONSTRUCTED, None)
    assert none_of(story.answer(2), ac.Reply)


def test_patience_tail_waits_until_the_answer_is_late():
    story = closed_group(patience="tail")
    story.advance(0.010)
    story.parity()
    assert none_of(story.answer(1), ac.Decode)
    assert story.timer(PatienceTimer) == pytest.approx(PRIOR_S)
    decode = only(story.advance(0.030), ac.Decode)
    assert story.at(decode) == pytest.approx(PRIOR_S)


def test_an_exact_answer_before_patience_ends_prevents_decoding():
    story = closed_group(patience="tail")
    story.parity()
    story.answer(1)
    assert only(story.answer(2), ac.Reply).source is Source.WORKER
    assert none_of(story.advance(1.0), ac.Decode)


def test_a_failed_member_is_decoded_without_patience():
    story = closed_group(patience="tail", retry_max=0)
    story.parity()
    story.answer(1)
    assert only(story.answer(2, ErrorKind.INTERNAL), ac.Decode).missing == (1,)


def test_an_exact_answer_during_decoding_wins_once():
    story = closed_group(patience="first")
    story.parity()
    decode = only(story.answer(1), ac.Decode)
    assert only(story.answer(2), ac.Reply).source is Source.WORKER
    assert none_of(story.decoded(decode), ac.Reply)


def test_two_rows_make_up_for_two_erasures():
    story = Script(6, policy="parity", k=2, r=2)
    story.query(1)
    story.query(2)
    story.parity(row=0)
    assert none_of(story.parity(row=1), ac.Decode)
    decode = only(story.advance(0.031), ac.Decode)
    assert decode.missing == (0, 1)
    replies = [a for a in story.decoded(decode) if isinstance(a, ac.Reply)]
    assert [(r.query, r.source) for r in replies] == [
        (1, Source.RECONSTRUCTED),
        (2, Source.RECONSTRUCTED),
    ]


def test_one_row_does_not_make_up_for_two_erasures():
    story = closed_group(retry_max=0)
    story.parity()
    assert none_of(story.answer(1, ErrorKind.INTERNAL), ac.Fail)
    actions = story.answer(2, ErrorKind.INTERNAL)
    assert {a.query for a in actions if isinstance(a, ac.Fail)} == {1, 2}


def test_after_a_decode_that_failed_a_lost_query_fails():
    story = closed_group(patience="first", retry_max=0)
    story.answer(2, ErrorKind.INTERNAL, message="gone wrong")
    story.answer(1)
    decode = only(story.parity(), ac.Decode)
    fail = only(story.decoded(decode, ok=False), ac.Fail)
    assert (fail.query, fail.message) == (2, "gone wrong")


def test_after_a_decode_that_failed_a_late_query_still_gets_its_answer():
    story = closed_group(patience="first")
    story.parity()
    decode = only(story.answer(1), ac.Decode)
    assert none_of(story.decoded(decode, ok=False), ac.Reply, ac.Fail, ac.Decode)
    assert only(story.answer(2), ac.Reply).source is Source.WORKER


def test_a_query_that_wants_an_exact_answer_is_never_reconstructed_but_helps_others():
    story = Script(4, policy="parity", k=2, patience="first")
    story.query(1, exact=True)
    story.query(2)
    story.parity()
    assert none_of(story.answer(2), ac.Decode)
    assert none_of(story.advance(0.5), ac.Decode)
    assert only(story.answer(1), ac.Reply).source is Source.WORKER
    story.query(3, exact=True)
    story.query(4)
    story.parity()
    assert only(story.answer(3), ac.Decode).missing == (1,)


def test_a_lost_parity_row_leaves_the_retried_answer():
    story = closed_group()
    story.parity(kind=ErrorKind.INTERNAL)
    story.answer(1)
    assert only(story.answer(2), ac.Reply).source is Source.WORKER
    assert story.engine.state.stats.redundancy_lost == 1


def test_a_query_fails_at_once_when_no_worker_is_left_for_its_parity():
    """All three domains are used by its group: waiting would only hide the error."""
    story = Script(3, policy="parity", k=2, idle_reserve=0)
    for query in (0, 1, 2):
        story.query(query, codable=query > 0)
    story.answer(1, ErrorKind.INTERNAL)
    assert only(story.answer(0), ac.Send).source is Source.RETRY
    story.answer(2)
    fail = only(story.answer(1, ErrorKind.INTERNAL, message="output is NaN"), ac.Fail)
    assert (fail.query, fail.message) == (1, "output is NaN")


def test_a_group_is_forgotten_when_the_deadlines_of_all_members_have_passed():
    story = closed_group()
    story.advance(2.0)
    assert {story.ends[q].status for q in (1, 2)} == {"DEADLINE_EXCEEDED"}
    assert not story.engine.coding.groups
    assert [a.group for a in story.every(ac.ForgetGroup)] == [1]


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_observe_answers_nothing_from_parity_and_says_what_it_would_have_done(mode: str):
    story = closed_group(patience="first", mode=mode)
    story.advance(0.010)
    story.parity()
    decode = only(story.answer(1), ac.Decode)
    story.advance(0.002)
    assert none_of(story.decoded(decode), ac.Reply) == (mode == "observe")
    if mode == "observe":
        story.advance(0.1)
        reply = only(story.answer(2), ac.Reply)
        assert reply.source is Source.WORKER
        assert reply.would_be_s == pytest.approx(0.012)
