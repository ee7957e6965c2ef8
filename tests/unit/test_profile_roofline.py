"""The roofline of a layer, on numbers worked out by hand, and how times become ratios."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.integrity.profile import roofline
from proa.integrity.profile.roofline import Machine, Work
from proa.integrity.profile.timing import Call, Effort, Sample, paired

MACHINE = Machine({"float32": 1e12, "bfloat16": 1e12}, 1e11, 1.0, {})


def test_a_layer_that_is_bound_by_memory() -> None:
    work = Work(flops=4_000_000, bytes=1_000_000)
    use = roofline.use_of(work, 20.0, "float32", MACHINE, on_gpu=False)
    assert work.intensity == 4.0
    assert MACHINE.cmr("float32") == 10.0
    assert (use.bound, use.flops_per_s) == ("memory", pytest.approx(2e11))
    assert (use.compute, use.memory) == (pytest.approx(0.2), pytest.approx(0.5))
    assert use.roofline == pytest.approx(0.5), "4 FLOP/B x 100 GB/s = 400 GFLOP/s allowed"
    assert (use.idle_tensor_cores, use.tile_waste) == (None, None)


def test_a_layer_that_is_bound_by_compute_on_a_gpu() -> None:
    work = Work(flops=100_000_000, bytes=1_000_000)
    use = roofline.use_of(
        work, 125.0, "bfloat16", MACHINE, on_gpu=True, rows_columns=(128, 192), batch_at_cmr=3
    )
    assert (use.bound, use.batch_at_cmr) == ("compute", 3)
    assert use.compute == pytest.approx(0.8)
    assert use.idle_tensor_cores == pytest.approx(0.2)
    assert use.tile_waste == pytest.approx(0.25), "192 columns fill 1.5 of 2 tiles"
    single = roofline.use_of(work, 125.0, "float32", MACHINE, on_gpu=True)
    assert (single.idle_tensor_cores, single.tile_waste) == (1.0, None)


def test_a_layer_shorter_than_calls_and_one_that_cannot_be_counted() -> None:
    tiny = roofline.use_of(Work(100, 100), 2.0, "float32", MACHINE, on_gpu=False)
    assert tiny.bound == "call"
    for use in (
        roofline.use_of(Work(None, 100), 2.0, "float32", MACHINE, on_gpu=False),
        roofline.use_of(Work(100, 100), 2.0, "int8", MACHINE, on_gpu=False),
    ):
        assert (use.bound, use.compute, use.roofline) == (None, None, None)
        assert use.memory == pytest.approx(5e-4)


LINEAR = st.tuples(*(st.integers(1, 4096) for _ in range(2)))


def linear(batch: int, inner: int, outputs: int) -> Work:
    return Work(
        2 * batch * inner * outputs, 4 * (batch * inner + inner * outputs + batch * outputs)
    )


@given(LINEAR, st.floats(0.1, 500))
def test_the_batch_at_which_compute_becomes_the_bound(sizes: tuple[int, int], cmr: float) -> None:
    found = roofline.crossing(linear(1, *sizes), linear(2, *sizes), cmr)
    if found is None:
        last = linear(roofline.BATCH_MAX, *sizes)
        assert (last.intensity or 0.0) <= cmr * (1 + 1e-9)
        return
    assert (linear(found, *sizes).intensity or 0.0) > cmr * (1 - 1e-9)
    if found > 1:
        assert (linear(found - 1, *sizes).intensity or 0.0) <= cmr * (1 + 1e-9)


def test_no_batch_helps_where_there_is_no_batch() -> None:
    assert roofline.crossing(Work(10, 10), Work(10, 10), 2.0) is None
    assert roofline.crossing(Work(30, 10), Work(30, 10), 2.0) == 1
    assert roofline.crossing(Work(None, 10), Work(None, 10), 2.0) is None


class Noisy:
    """Calls that take what they say, on a machine that gets slower and slower."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def prepare(self, call: Call, count: int) -> Callable[[], Sample]:
        def run() -> Sample:
            name, seconds = call()  # type: ignore[misc]
            self.turns.append(name)
            slow = 1.0 + 0.1 * (len(self.turns) // 2)
            return Sample(seconds * count * slow, seconds * count)

        return run


def test_ratios_of_pairs_do_not_see_a_machine_that_slows_down() -> None:
    timer = Noisy()
    calls = {"none": lambda: ("none", 1e-5), "row": lambda: ("row", 1.1e-5)}
    found = paired(calls, timer, Effort(repeats=20, sample_ms=0.1))
    assert found["row"].overhead == pytest.approx(0.1, abs=0.02)
    assert found["row"].cpu_overhead == pytest.approx(0.1)
    assert found["none"].overhead == 0.0
    assert found["row"].us == pytest.approx(found["none"].us * (1 + found["row"].overhead))
    assert found["none"].cpu_us == pytest.approx(10.0)
    turns = timer.turns[3:]
    assert turns[:4] == ["none", "row", "row", "none"], "each is first as often"
