"""The schedules are worth something only if they fail: each sabotage of the engine is noticed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fakes import oracle, schedule
from fakes.schedule import Schedule
from proa.dispatch import Engine
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import PARITY
from proa.dispatch.policy import Retry
from proa.dispatch.query import Query

SEEDS = 400


def ignore_reserve(engine: Engine) -> None:
    engine._spare._spare = lambda *_: True


def pick_with(engine: Engine, **changed: Any) -> None:
    """The picker of parity workers overlooks something."""
    pick = engine.state.workers.pick

    def careless(role: str, now: float, **wanted: Any) -> Any:
        return pick(role, now, **(wanted | changed if role == PARITY else wanted))

    engine.state.workers.pick = careless


def ignore_domains(engine: Engine) -> None:
    pick_with(engine, avoid=())


def mix_versions(engine: Engine) -> None:
    pick_with(engine, package=None)


def run_redundancy_on_busy_workers(engine: Engine) -> None:
    pick_with(engine, idle_only=False)


def exceed_inflight_max(engine: Engine) -> None:
    engine.state.workers._inflight_max += 1


def hedge_without_limit(engine: Engine) -> None:
    engine._hedges._budget.spend = lambda: True


def reply_twice(engine: Engine) -> None:
    handle = engine.handle

    def stutter(event: ev.Event, now: float) -> list[ac.Action]:
        actions = handle(event, now)
        return actions + [a for a in actions if isinstance(a, ac.Reply) and a.attempt is None]

    engine.handle = stutter


def leak_groups(engine: Engine) -> None:
    engine.coding.expired = engine.coding._finish = lambda *_: None


def take_lost_rows_for_answered(engine: Engine) -> None:
    ended = engine.coding.row_ended
    engine.coding.row_ended = lambda group, row, *, ok, now: ended(group, row, ok=True, now=now)


def decode_without_a_member(engine: Engine) -> None:
    missing = engine.coding.missing
    engine.coding.missing = lambda group: missing(group)[:1]


def release_with_the_answer(engine: Engine) -> None:
    let_go = engine.state.let_go

    def hasty(query: Query) -> None:
        held = query.holds > 1
        let_go(query)
        if held:
            engine.state.out.append(ac.Release(query.id))

    engine.state.let_go = hasty


def never_release(engine: Engine) -> None:
    engine.state.let_go = lambda query: None


def arrive_changed(engine: Engine, **changed: Any) -> None:
    """The engine overlooks something about every query."""
    arrived = engine._handlers[ev.QueryArrived]
    engine._handlers[ev.QueryArrived] = lambda event, now: arrived(replace(event, **changed), now)


def reconstruct_what_must_be_exact(engine: Engine) -> None:
    arrive_changed(engine, exact=False)


def mix_tenants(engine: Engine) -> None:
    arrive_changed(engine, key="all")


def forget_cancellation(engine: Engine) -> None:
    engine._handlers[ev.QueryCancelled] = lambda event, now: None


def configure(engine: Engine, **changed: Any) -> None:
    """The engine overlooks something in its configuration."""
    engine.config = engine.state.config = replace(engine.config, **changed)


def answer_while_observing(engine: Engine) -> None:
    configure(engine, mode="enforce")


def queue_without_limit(engine: Engine) -> None:
    configure(engine, queue_max=1 << 30)


def retry_under_none(engine: Engine) -> None:
    engine._policies["none"] = Retry()


def retry_in_the_same_place(engine: Engine) -> None:
    pick = engine.state.workers.pick

    def lazy(role: str, now: float, **wanted: Any) -> Any:
        return pick(role, now, **(wanted if "idle_only" in wanted else {}))

    engine.state.workers.pick = lazy


def overfill_the_reservoir(engine: Engine) -> None:
    engine.coding._reservoir._bytes_max = 1 << 30


def send_to_draining_workers(engine: Engine) -> None:
    engine._handlers[ev.WorkerDraining] = lambda event, now: None


def lose_what_drains(engine: Engine) -> None:
    engine._handlers[ev.WorkerDraining] = engine._fleet.left


def take_the_room_of_all(engine: Engine) -> None:
    engine.state.share.of = lambda room, now: room


def forget_held_answers(engine: Engine) -> None:
    engine._drills.over = lambda query, now: None
    hopeless = engine._hopeless

    def forgetful(query: Query, now: float) -> None:
        query.held = None
        hopeless(query, now)

    engine._hopeless = engine.coding._on_hopeless = forgetful


def drill_every_query(engine: Engine) -> None:
    arrive_changed(engine, reconstruct=True)


def refuse_although_workers_are_free(engine: Engine) -> None:
    engine._admission.refusal = lambda query, now: "too many" if query.id % 5 == 0 else ""


def refuse_before_there_is_data(engine: Engine) -> None:
    engine._admission._is_sure = lambda: True


def give_up_early(engine: Engine) -> None:
    engine._admission.in_vain = lambda query, now: now > query.arrived_at


def tie_under_every_policy(engine: Engine) -> None:
    engine._tied._may = lambda query: True


def tie_to_whoever_is_busy(engine: Engine) -> None:
    engine._tied._host = lambda now: next(iter(engine.state.workers.full()), None)


def let_queries_wait(engine: Engine) -> None:
    engine._tied.due = lambda queue, now: iter(())


def keep_tied_queries_where_they_are(engine: Engine) -> None:
    engine._tied.take_back = lambda query: None


SABOTAGES = (
    tie_under_every_policy, tie_to_whoever_is_busy, keep_tied_queries_where_they_are,
    let_queries_wait, refuse_although_workers_are_free, refuse_before_there_is_data, give_up_early,
    send_to_draining_workers, lose_what_drains, take_the_room_of_all, forget_held_answers,
    drill_every_query,
    ignore_reserve, ignore_domains, mix_versions, run_redundancy_on_busy_workers,
    exceed_inflight_max, hedge_without_limit, reply_twice, leak_groups,
    take_lost_rows_for_answered, decode_without_a_member, release_with_the_answer, never_release,
    reconstruct_what_must_be_exact, mix_tenants, forget_cancellation, answer_while_observing,
    queue_without_limit, retry_under_none, retry_in_the_same_place, overfill_the_reservoir,
)  # fmt: skip


def is_noticed(seed: int, sabotage: Callable[[Engine], None]) -> bool:
    """Whether the oracle itself objects; an assertion inside the broken engine does not count."""
    try:
        Schedule(seed, sabotage=sabotage).run()
    except Exception as exc:  # noqa: BLE001 - a broken engine may break in any way
        place = traceback.extract_tb(exc.__traceback__)[-1].filename
        return isinstance(exc, AssertionError) and place in (oracle.__file__, schedule.__file__)
    return False


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s.__name__)
def test_the_schedules_notice(sabotage: Callable[[Engine], None]):
    assert any(is_noticed(seed, sabotage) for seed in range(SEEDS))


def test_without_sabotage_they_notice_nothing():
    assert not any(is_noticed(seed, lambda engine: None) for seed in range(100))
