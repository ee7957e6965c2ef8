"""Faults are found, located and repaired; what the check cannot see is written down too."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kernels.matrices import operands, product
from proa_kernels.checksum import take
from proa_kernels.injection import flip
from proa_kernels.linear import Tamper, checked_linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (8, 300, 256)


def once(change: Tamper) -> Tamper:
    """A transient fault: the recomputation is left alone."""

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            change(acc, attempt)

    return tamper


def set_to(row: int, column: int, value: float) -> Tamper:
    def tamper(acc: torch.Tensor, _attempt: int) -> None:
        acc[row, column] = value

    return tamper


def flip_at(acc: torch.Tensor, _attempt: int, *, place: tuple[int, int], bits: int) -> None:
    flip(acc, place, bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 1, 127, 128, 255, 256, 299])
def test_a_single_error_is_located_and_repaired(dtype: torch.dtype, column: int) -> None:
    x, weight = operands("n01", SIZES, dtype)
    clean, _ = product(x, weight)

    def add(acc: torch.Tensor, _attempt: int) -> None:
        acc[5, column] += 1.0

    wrong, seen = product(x, weight, tamper=once(add))
    assert (seen.alarms, seen.repaired, seen.status) == (1, 0, "failed")
    assert (seen.row, seen.column) == (5, column)
    assert seen.ratio > 1.0
    assert float(wrong[5, column] - clean[5, column]) == pytest.approx(1.0, rel=1e-3)
    fixed, repaired = product(x, weight, tamper=once(add), correct=True)
    assert (repaired.alarms, repaired.repaired, repaired.status) == (1, 1, "corrected")
    assert torch.equal(fixed, clean)


@pytest.mark.parametrize("stays", [False, True])
def test_columns_of_single_flips_are_located(stays: bool) -> None:
    """One that stays has the two checksums alone: near the threshold they miss at times."""
    x, weight = operands("n01", (16, 256, 512))
    generator = torch.Generator().manual_seed(3)
    found = right = 0
    for _ in range(400):
        row, column, bit = (int(torch.randint(n, (), generator=generator)) for n in (16, 256, 32))
        fault: Tamper = partial(flip_at, place=(row, column), bits=1 << bit)
        _, verdict = product(x, weight, tamper=fault if stays else once(fault))
        found += verdict.alarms
        right += verdict.alarms and (verdict.row, verdict.column) == (row, column)
    assert found > 150
    assert right >= (0.95 if stays else 1.0) * found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", [False, True])
def test_values_that_are_no_numbers_alarm(value: float, mode: bool) -> None:
    x, weight = operands("n01", SIZES)
    clean, _ = product(x, weight)
    fixed, verdict = product(x, weight, tamper=once(set_to(2, 140, value)), correct=mode)
    assert (verdict.alarms, verdict.row, verdict.column) == (1, 2, 140)
    assert verdict.ratio == math.inf
    assert verdict.repaired == int(mode)
    assert torch.equal(fixed, clean) is mode


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_input_that_is_no_number_alarms_and_stays(value: float) -> None:
    x, weight = operands("n01", SIZES)
    x[3, 7] = value
    _, verdict = product(x, weight, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.row) == (3, 0, 3)
    assert verdict.status == "failed"


def test_swaps_and_opposite_pairs_are_seen() -> None:
    """The ones vector is blind to both."""
    x, weight = operands("n01", (200, 128, 256))
    generator = torch.Generator().manual_seed(1)
    left = torch.randint(128, (200,), generator=generator)
    right = (left + 1 + torch.randint(127, (200,), generator=generator)) % 128
    rows = torch.arange(200)

    def swap(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left], acc[rows, right] = acc[rows, right].clone(), acc[rows, left].clone()

    def pair(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left] += 0.5
        acc[rows, right] -= 0.5

    for fault in (swap, pair):
        _, verdict = product(x, weight, tamper=once(fault))
        assert verdict.alarms >= 199


def test_a_fault_that_stays_is_not_called_repaired() -> None:
    x, weight = operands("n01", SIZES)
    _, verdict = product(x, weight, tamper=set_to(1, 1, 1e4), correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.status) == (1, 0, "failed")


def test_only_the_faulty_rows_are_replaced() -> None:
    x, weight = operands("n01", SIZES)
    clean, _ = product(x, weight)

    def wander(acc: torch.Tensor, attempt: int) -> None:
        acc[attempt] += 1.0  # the recomputation is wrong too, elsewhere

    fixed, verdict = product(x, weight, tamper=wander, correct=True)
    assert (verdict.alarms, verdict.repaired) == (3, 3)
    assert torch.equal(fixed, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_changed_after_its_checksum_alarms(dtype: torch.dtype) -> None:
    """Whatever the dtype, the flip of an exponent bit; the recomputation cannot help."""
    x, weight = operands("n01", SIZES, dtype)
    check = take(weight)
    flip(weight, (130, 17), 1 << (25 if dtype == torch.float32 else 11))
    _, verdict = product(x, weight, check, correct=True)
    assert verdict.alarms > len(x) // 2
    assert verdict.repaired == 0
    assert verdict.column == 130


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_became_no_number_alarms_in_every_row(value: float) -> None:
    x, weight = operands("n01", SIZES)
    check = take(weight)
    weight[0, 0] = value
    _, verdict = product(x, weight, check)
    assert (verdict.alarms, verdict.column, verdict.ratio) == (len(x), 0, math.inf)


def test_a_checksum_that_changed_alarms() -> None:
    x, weight = operands("n01", SIZES)
    for broken in (math.nan, math.inf, -math.inf, 1e3):
        check = take(weight)
        check.columns[0, 9, 2] = broken
        _, verdict = product(x, weight, check, correct=True)
        assert (verdict.alarms, verdict.repaired) == (len(x), 0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30])
def test_a_weight_scale_that_grew_hides_nothing(broken: float) -> None:
    """A threshold of Inf, NaN or 1e30 would let everything pass."""
    x, weight = operands("n01", SIZES)
    check = take(weight)
    check.scales[1, 1, 0] = broken
    _, verdict = product(x, weight, check, tamper=once(set_to(1, 130, 5e3)))
    assert verdict.alarms >= 1
    check.scales[:] = math.inf  # then a second product decides
    assert product(x, weight, check)[1].alarms == 0
    assert product(x, weight, check, tamper=once(set_to(1, 130, 5e3)))[1].alarms == 1


def test_noise_on_constant_data_is_told_from_a_fault() -> None:
    """There the closed form is too tight: what differs from its recomputation is a fault still."""
    x, weight = operands("constant", (4, 128, 16384))
    clean, before = product(x, weight)
    fixed, verdict = product(x, weight, tamper=once(set_to(2, 3, 170.0)), correct=True)
    assert (before.alarms, verdict.alarms, verdict.repaired) == (0, 1, 1)
    assert torch.equal(fixed, clean)


def test_a_huge_scale_hides_no_fault() -> None:
    """Squares and sums beyond fp32 make the screen's threshold infinite."""
    x, weight = torch.full((2, 1), 1e19), torch.full((128, 1), 1e19)
    _, verdict = product(x, weight, tamper=once(set_to(1, 5, 2e38)))
    assert (verdict.alarms, verdict.row, verdict.column) == (1, 1, 5)


def test_what_is_not_covered() -> None:
    """Inputs before the operator, the addend and the stored output: docs/abft.md says so."""
    x, weight = operands("n01", (4, 16, 32))
    check, bias = take(weight), torch.zeros(16)
    clean, _ = checked_linear(x, weight, bias, check.columns, check.scales)
    flip(bias, (3,), 1 << 30)
    wrong_bias, verdict = checked_linear(x, weight, bias, check.columns, check.scales)
    assert not torch.equal(clean, wrong_bias)
    assert verdict[1] == 0
    flip(x, (2, 2), 1 << 24)
    wrong_input, verdict = checked_linear(x, weight, None, check.columns, check.scales)
    assert not torch.equal(clean, wrong_input)
    assert verdict[1] == 0
