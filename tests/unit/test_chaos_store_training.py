"""A trainer notices every wrong bit, and nothing that is not wrong; and measures of training."""

from __future__ import annotations

import numpy as np
import pytest

from proa.errors import DataLost, PushIndeterminate
from proa.store.optimisers import RowWiseAdagrad
from proa.store.tables import Table
from proa.store.trainer import Compared, Trainer
from proa_chaos.experiment import Experiment, Probe, StoreLoad, Workload
from proa_chaos.hypothesis import judge, probes_of
from proa_chaos.store.measures import Scrubbed, Step, StoreObservations

TABLE = Table("t", 60, 4, RowWiseAdagrad(0.1))


class Memory:
    """A store in memory: each push once, however often it is sent. `spoil`: called with the ids and
    old records of the next push, and says what becomes of them."""

    def __init__(self):
        self.records = np.zeros((TABLE.rows, TABLE.width), np.uint8)
        self.done: dict[int, int] = {}
        self.lost: set[int] = set()
        self.refusing: list[tuple[str, Exception]] = []
        self.times = 1

    def _named(self, ids):
        gone = sorted(self.lost & set(ids.tolist()))
        if gone:
            raise DataLost("gone", table="t", ids=tuple(gone))

    async def stored(self, _name, ids, lost=None):
        if lost is None:
            self._named(ids)
        else:
            lost |= self.lost & set(ids.tolist())
        found = self.records[ids]
        found[np.isin(ids, list(self.lost))] = 0
        return found

    async def pull(self, name, ids):
        self._named(ids)
        return TABLE.weights(ids, await self.stored(name, ids))

    async def push_as(self, worker, step, floor, gradients, session):
        assert floor == step, "all before it were acknowledged"
        assert session is None
        ((ids, values),) = gradients.values()
        when, error = self.refusing.pop(0) if self.refusing else ("", None)
        if when == "before":
            raise error
        if self.done.get(worker) != step:
            self._apply(ids, values, only=error.ids if when == "half" else None)
            self.done[worker] = step
        if error is not None:
            raise error

    def _apply(self, ids, values, only):
        payload = np.ascontiguousarray(values).view(np.uint8)
        for _ in range(self.times):
            after = TABLE.update(ids, self.records[ids], payload)
            take = np.ones(len(ids), bool) if only is None else ids % 2 == 1
            self.records[ids[take]] = after[take]

    async def set_rows(self, _name, ids, weights, state):
        values = np.hstack((weights, state)).astype(np.float32).view(np.uint8)
        self.records[ids] = values ^ TABLE.initial_records(ids)
        self.lost -= set(ids.tolist())


async def begun(**options):
    store = Memory()
    trainer = Trainer(TABLE, np.arange(TABLE.rows), 20, (7,), **options)
    assert await trainer.begin(store) == 0
    return store, trainer


async def found(store, trainer, steps=12):
    for _ in range(steps):
        await trainer.step(store)
    await trainer.check(store)
    return trainer.compared()


async def test_every_row_is_stored_before_the_first_step():
    store, trainer = await begun()
    assert (store.records != 0).any(axis=1).all()
    assert (trainer.copy == store.records).all()


async def test_what_is_right_is_not_called_wrong():
    store, trainer = await begun()
    assert await found(store, trainer) == Compared(rows=TABLE.rows * 2 + 12 * 20)
    other = Trainer(TABLE, np.arange(TABLE.rows), 20, (8,))
    await other.begin(store)  # what an earlier run left is where it begins
    assert (await found(store, other)).wrong == 0


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_push_without_an_answer_is_sent_again_and_counts_once(when):
    store, trainer = await begun()
    store.refusing = [(when, PushIndeterminate("?"))] * 3
    for _ in range(3):
        with pytest.raises(PushIndeterminate):
            await trainer.step(store)
    assert (await found(store, trainer)).wrong == 0
    assert max(store.done.values()) == 12, "three steps of the beginning, then 12 less 3"


@pytest.mark.parametrize("unanswered", [False, True])
async def test_a_push_that_is_done_twice_is_seen(unanswered):
    store, trainer = await begun()
    await trainer.step(store)
    store.times = 2
    if unanswered:
        store.refusing = [("after", PushIndeterminate("?"))]
        with pytest.raises(PushIndeterminate):
            await trainer.step(store)
    else:
        await trainer.step(store)
    store.times = 1
    assert (await found(store, trainer, 0)).wrong == 20


async def test_an_acknowledged_push_that_is_lost_is_seen():
    store, trainer = await begun()
    store.times = 0
    await trainer.step(store)
    store.times = 1
    assert (await found(store, trainer, 0)).wrong == 20


@pytest.mark.parametrize("byte", [0, TABLE.width - 1], ids=["weight", "state"])
async def test_a_flipped_bit_is_seen(byte):
    store, trainer = await begun()
    store.records[13, byte] ^= 1
    assert (await found(store, trainer, 0)).wrong == 1


async def test_lost_rows_are_counted_once_left_out_and_set_anew():
    store, trainer = await begun()
    before = store.records.copy()
    store.lost = set(range(0, 60, 3))
    while not trainer.lost >= store.lost:
        with pytest.raises(DataLost):
            await trainer.step(store)
        await trainer.check(store)
    compared = await found(store, trainer)
    assert (compared.wrong, compared.lost) == (0, 20)
    await trainer.restore(store)
    assert not store.lost
    assert (store.records[::3] == before[::3]).all()
    assert await found(store, trainer) == Compared(rows=TABLE.rows + 12 * 20)


async def test_all_rows_lost_is_an_error_and_no_end():
    store, trainer = await begun()
    store.lost = set(range(60))
    with pytest.raises(DataLost, match="gone"):
        await trainer.step(store)
    await trainer.check(store)
    with pytest.raises(DataLost, match="all rows are lost"):
        await trainer.step(store)


async def test_lost_rows_of_an_earlier_run_begin_anew():
    store, _ = await begun()
    store.lost = {4, 5}
    trainer = Trainer(TABLE, np.arange(TABLE.rows), 20, (9,))
    assert await trainer.begin(store) == 2
    assert (await found(store, trainer)).wrong == 0


async def test_of_a_refused_step_a_row_may_be_either():
    store, trainer = await begun()
    store.refusing = [("half", DataLost("gone", table="t", ids=(2,)))]
    with pytest.raises(DataLost):
        await trainer.step(store)
    assert trainer.lost == {2}
    compared = await found(store, trainer)
    assert (compared.wrong, compared.lost) == (0, 1)
    store.records[7] ^= 1  # and nothing else
    assert (await found(store, trainer, 0)).wrong == 1


# --- measures


def observed():
    """Steps end at 1, 2, 3 s; then none until 9 s; one fails."""
    times = [(0.5, 1.0), (1.5, 2.0), (2.5, 3.0), (4.0, 9.0), (9.5, 10.0)]
    phases = ("before", "before", "during", "during", "after")
    steps = [
        Step(phase, begin, end - begin, rows=10, rows_wrong=i == 1, wrong=i == 1)
        for i, (phase, (begin, end)) in enumerate(zip(phases, times, strict=True))
    ]
    steps.append(Step("during", 4.0, 1.0, status="DATA_LOSS", rows_lost=3))
    later = [Step("after", 9.1, 0.1, rows=100, rows_wrong=2, wrong=True)]
    windows = {"before": (0.0, 2.0), "during": (2.0, 6.0), "after": (9.0, 11.0)}
    scrubbed = Scrubbed(rows_found=4, rows_repaired=3, parity_wrong=1)
    return StoreObservations(30.0, steps, 1.5, later, windows, 77, scrubbed)


@pytest.mark.parametrize(
    ("measure", "phase", "want"),
    [
        ("sent", "all", 6.0), ("failed", "during", 1.0), ("failed", "all", 1.0),
        ("maxMs", "during", 30_000.0), ("maxMs", "before", 500.0),
        ("wrong", "before", 1.0), ("wrong", "during", 0.0), ("wrong", "after", 2.0),
        ("wrong", "all", 3.0), ("compared", "all", 150.0), ("lost", "all", 3.0),
        ("stepsPerS", "before", 0.5), ("stepsPerS", "during", 0.5), ("stepsPerS", "after", 1.0),
        ("stallMs", "before", 1000.0), ("stallMs", "during", 6000.0), ("stallMs", "all", 6000.0),
        ("stallMs", "after", 1000.0),
        ("rowsDecoded", "all", 77.0), ("found", "all", 4.0), ("repaired", "during", 3.0),
        ("parityWrong", "all", 1.0), ("recoveryS", "after", 1.5),
    ],
)  # fmt: skip
def test_measures(measure, phase, want):
    assert observed().measure(measure, phase) == pytest.approx(want)


def test_what_was_not_measured_is_not_met():
    nothing = StoreObservations(1.0)
    for name in ("found", "stepsPerS", "stallMs", "recoveryS"):
        assert nothing.measure(name, "during") is None
        assert not judge(Probe(name, at_least=0.0), nothing).met


def test_what_the_end_tells_is_judged_in_the_end():
    late = [Probe(name) for name in ("found", "repaired", "rowsDecoded", "stallMs", "parityWrong")]
    soon = [Probe(name) for name in ("wrong", "stepsPerS", "failed")]
    load = Workload(store=StoreLoad())
    experiment = Experiment("t", "t", "d", (*late, *soon), workload=load)
    assert probes_of(experiment, "during") == soon
    assert probes_of(experiment, "after") == late
