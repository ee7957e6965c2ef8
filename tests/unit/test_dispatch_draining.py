"""Workers that are about to leave; and queries for which no worker is left."""

from __future__ import annotations

from fakes.script import SERVICE_S, Script, none_of, only
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.actions import Source
from proa.dispatch.events import ErrorKind


def test_nothing_new_goes_to_a_draining_worker():
    story = Script(2, policy="none")
    assert story.feed(ev.WorkerDraining("w0")) == []
    for query in range(4):
        assert only(story.query(query), ac.Send).worker == "w1"
        story.answer(query)
    story.query(8)
    assert none_of(story.query(9), ac.Send)
    assert story.engine.state.workers.ready() == 1


def test_what_runs_there_finishes_and_counts():
    story = Script(2, policy="none")
    send = only(story.query(1), ac.Send)
    story.feed(ev.WorkerDraining(send.worker))
    assert only(story.answer(1), ac.Reply).worker == send.worker
    assert none_of(story.feed(ev.WorkerLeft(send.worker)), ac.Cancel, ac.Send)


def test_a_group_keeps_a_member_and_a_row_that_drain():
    story = Script(4, policy="parity", k=2, patience="first")
    story.query(1)
    parity = only(story.query(2), ac.SendParity)
    story.feed(ev.WorkerDraining(parity.worker))
    story.feed(ev.WorkerDraining(story.where(1)))
    story.answer(1)
    decode = only(story.parity(), ac.Decode)
    assert only(story.decoded(decode), ac.Reply).source is Source.RECONSTRUCTED


def test_no_redundant_work_on_a_draining_worker():
    story = Script(4, policy="parity", k=2, idle_reserve=0)
    story.feed(ev.WorkerDraining("w2"))
    story.feed(ev.WorkerDraining("w3"))
    story.query(1)
    assert none_of(story.query(2), ac.SendParity)
    assert only(story.join("w3"), ac.SendParity).worker == "w3"


def test_leaving_takes_what_still_runs():
    story = Script(2, policy="retry")
    send = only(story.query(1), ac.Send)
    story.feed(ev.WorkerDraining(send.worker))
    actions = story.feed(ev.WorkerLeft(send.worker))
    assert only(actions, ac.Cancel).attempt == send.attempt
    assert only(actions, ac.Send).source is Source.RETRY


def test_a_worker_that_moves_keeps_what_runs_and_counts_to_its_new_domain():
    story = Script(3, policy="parity", k=2)
    story.query(1)
    story.feed(ev.WorkerMoved(story.where(1), "d9"))
    assert none_of(story.answer(1), ac.Fail)
    for worker in ("w0", "w1", "w2"):
        story.feed(ev.WorkerMoved(worker, "one"))
    story.query(2)
    assert none_of(story.query(3), ac.SendParity)


def test_a_worker_that_stays_after_all_loses_nothing():
    story = Script(1, policy="none")
    send = only(story.query(1), ac.Send)
    story.feed(ev.WorkerDraining("w0"))
    assert story.join("w0") == []
    assert only(story.answer(1), ac.Reply).attempt == send.attempt
    assert only(story.query(2), ac.Send).worker == "w0"


def test_a_replaced_one_has_lost_what_ran():
    story = Script(2, policy="retry")
    send = only(story.query(1), ac.Send)
    story.feed(ev.WorkerDraining(send.worker))
    actions = story.join(send.worker, package="new")
    assert only(actions, ac.Cancel).attempt == send.attempt


def test_one_refusal_does_not_take_the_rest_along():
    story = Script(2, policy="retry", inflight_max=2)
    for query in range(4):
        story.query(query)
    (worker,) = {story.where(0)}
    there = [q for q in range(4) if story.where(q) == worker]
    story.feed(ev.WorkerDraining(worker))
    actions = story.answer(there[1], ErrorKind.UNAVAILABLE)
    assert none_of(actions, ac.Cancel, ac.Probe)
    assert only(story.answer(there[0]), ac.Reply).worker == worker


def test_a_draining_worker_that_hangs_is_given_up_without_a_probe():
    story = Script(2, policy="retry", overdue_s_min=1.0)
    send = only(story.query(1, deadline=60.0), ac.Send)
    story.feed(ev.WorkerDraining(send.worker))
    actions = story.advance(1.5)
    assert none_of(actions, ac.Probe)
    assert only(actions, ac.Cancel).attempt == send.attempt
    assert only(actions, ac.Send).worker != send.worker


def test_draining_all_is_no_worker_at_all():
    story = Script(1, policy="none")
    story.feed(ev.WorkerDraining("w0"))
    story.query(1)
    fail = only(story.advance(1.0), ac.Fail)
    assert (fail.status, fail.message) == ("UNAVAILABLE", "no worker is ready")


def test_a_retry_that_finds_no_worker_ends_unavailable():
    story = Script(1, policy="retry")
    story.query(1)
    story.feed(ev.WorkerLeft("w0"))
    assert only(story.advance(1.0), ac.Fail).status == "UNAVAILABLE"


def test_a_worker_that_computes_for_too_long_is_no_missing_worker():
    story = Script(1, policy="none")
    story.query(1)
    story.feed(ev.WorkerDraining("w0"))
    story.advance(SERVICE_S)
    assert only(story.advance(1.0), ac.Fail).status == "DEADLINE_EXCEEDED"


def test_unknown_workers_may_drain():
    assert Script(1).feed(ev.WorkerDraining("w7")) == []
