"""The GPU kernels of checked products in Triton's CPU interpreter, against the reference.

fp16 and fp32: the interpreter multiplies bf16 wrongly (triton#11584). What it cannot show: the
rounding of tensor cores, anything about time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from kernels.interpreted import interpreting, linear_gpu  # first: it decides what Triton is
from kernels.matrices import DEGENERATE, REGULAR, Sizes, operands
from proa_kernels import KernelError, Verdict
from proa_kernels.checksum import Checksum, take
from proa_kernels.gpu.faults import SITES
from proa_kernels.gpu.launch import choose
from proa_kernels.injection import flip
from proa_kernels.linear import checked_linear

DTYPES = (torch.float32, torch.float16)
SCHEMES = ("tile", "fused")
# Of the largest value, against the reference: sums in another order, then one rounding.
TOLERANCE = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}
SIZES = (8, 300, 256)


def short(values: Sequence[object], *kept: object) -> list[object]:
    """Values of a parameter: those not kept run in `make test-long` alone."""
    long = pytest.mark.long
    return [one if one in kept else pytest.param(one, marks=long) for one in values]


pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    with interpreting():
        yield


def gpu(
    x: torch.Tensor, weight: torch.Tensor, check: Checksum | None = None, **options: object
) -> tuple[torch.Tensor, Verdict]:
    check = check or take(weight)
    addend = options.pop("addend", None)
    out, found = linear_gpu.checked_linear(
        x, weight, addend, check.columns, check.scales, **options  # type: ignore[arg-type]
    )  # fmt: skip
    return out, Verdict.read(found)


def fault(site: str, row: int, column: int, bits: int, *, step: int = 0, stays: bool = False) -> (
    torch.Tensor
):  # fmt: skip
    signed = bits - (1 << 32) if bits >> 31 else bits
    at = [SITES.index(site), row, column, step, signed, int(stays)]
    return torch.tensor(at, dtype=torch.int32)


def assert_agrees(out: torch.Tensor, expected: torch.Tensor, inner: int) -> None:
    """Within the tolerance of the dtype and of sums over `inner`."""
    scale = float(expected.float().abs().max())
    allowed = scale * (TOLERANCE[out.dtype] + TOLERANCE[torch.float32] * (4 + 2 * inner**0.5))
    torch.testing.assert_close(out, expected, rtol=0.0, atol=allowed)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 130, 300), (17, 1, 40), (70, 135, 129)])
def test_agrees_with_the_reference(sizes: Sizes, dtype: torch.dtype, scheme: str) -> None:
    x, weight = operands("n01", sizes, dtype)
    out, verdict = gpu(x, weight, scheme=scheme)
    check = take(weight)
    expected, seen = checked_linear(x, weight, None, check.columns, check.scales)
    assert_agrees(out, expected, sizes[2])
    reference = Verdict.read(seen)
    assert (verdict.checks, verdict.alarms, verdict.cleared) == (reference.checks, 0, 0)
    assert (verdict.layer, verdict.row, verdict.column) == (-1, -1, -1)
    assert 0.0 <= verdict.ratio < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner_first", [False, True])
def test_layouts_scales_and_addends(dtype: torch.dtype, inner_first: bool) -> None:
    x, weight = operands("n01", (12, 140, 96), dtype)
    stored = weight.T.contiguous() if inner_first else weight
    check = take(weight)
    wide = torch.stack([x, x], dim=-1)[..., 0].view(3, 4, 96)  # every second element
    for addend in (torch.ones(140), torch.randn(3, 4, 140), torch.randn(4, 1), torch.tensor(2.0)):
        args = (wide, stored, addend.to(dtype), check.columns, check.scales)
        options = {"inner_first": inner_first, "alpha": 0.5, "beta": -2.0}
        out, _ = linear_gpu.checked_linear(*args, **options)
        expected, _ = checked_linear(*args, **options)
        assert out.shape == (3, 4, 140)
        assert_agrees(out, expected, 96)


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (3, 0, 8), (2, 0)])
def test_nothing_to_multiply(shape: tuple[int, ...]) -> None:
    weight = torch.ones(5, shape[-1])
    check = take(weight)
    out, verdict = linear_gpu.checked_linear(
        torch.zeros(shape), weight, torch.ones(5), check.columns, check.scales
    )
    assert torch.equal(out, torch.ones(*shape[:-1], 5))
    assert verdict.tolist() == [0, 0, 0, 0, 0, -1, -1, -1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", short([*REGULAR, *DEGENERATE], "cancelling", "constant"))
def test_clean_data_never_alarms(kind: str, scheme: str) -> None:
    for dtype in DTYPES:
        x, weight = operands(kind, (40, 200, 320), dtype)
        _, verdict = gpu(x, weight, scheme=scheme)
        assert (verdict.alarms, verdict.repaired) == (0, 0)
        assert verdict.ratio < 0.6 or kind in DEGENERATE


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", short([0, 1, 3], 1))
def test_a_flip_is_found_located_and_repaired(dtype: torch.dtype, step: int, scheme: str) -> None:
    """At the first, a middle and after the last step of K: 128 or 64 at a time, of 384 or 192."""
    sizes = (8, 300, 384 if dtype == torch.float16 else 192)
    x, weight = operands("n01", sizes, dtype)
    clean, _ = gpu(x, weight, scheme=scheme)
    hit = fault("accumulator", 5, 259, 1 << 30, step=step)
    wrong, seen = gpu(x, weight, scheme=scheme, fault=hit)
    assert (seen.alarms, seen.repaired, seen.status) == (1, 0, "failed")
    assert (seen.row, seen.column) == (5, 259)
    assert seen.ratio > 1.0
    assert (wrong != clean).sum() == 1
    fixed, repaired = gpu(x, weight, scheme=scheme, fault=hit, correct=True)
    assert (repaired.alarms, repaired.repaired, repaired.status) == (1, 1, "corrected")
    assert (repaired.row, repaired.column) == (5, 259)
    assert torch.equal(fixed, clean)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_fault_that_stays_is_found_but_not_called_repaired(scheme: str) -> None:
    """Then the two checksums alone locate it: nothing differs."""
    x, weight = operands("n01", (8, 136, 256), torch.float16)
    hit = fault("accumulator", 2, 131, 1 << 28, step=2, stays=True)
    _, verdict = gpu(x, weight, scheme=scheme, fault=hit, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.status) == (1, 0, "failed")
    assert (verdict.row, verdict.column) == (2, 131)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_operands_wrong_within_the_kernel(scheme: str) -> None:
    """One program reads them wrong, its checksum with it where that shares the operand."""
    x, weight = operands("n01", SIZES, torch.float16)
    clean, _ = gpu(x, weight, scheme=scheme)
    hit = fault("weight", 40, 7, 1 << 13)
    fixed, verdict = gpu(x, weight, scheme=scheme, fault=hit, correct=True)
    assert verdict.alarms == verdict.repaired > 4, "one weight is in every row"
    assert verdict.column == 7
    assert torch.equal(fixed, clean)
    _, verdict = gpu(x, weight, scheme=scheme, fault=fault("input", 3, 40, 1 << 13))
    assert verdict.alarms == (0 if scheme == "tile" else 3), "docs/abft-gpu.md: what it misses"


def test_a_wrong_checksum_is_cleared_and_a_wrong_store_is_not_seen() -> None:
    x, weight = operands("n01", SIZES, torch.float16)
    clean, _ = gpu(x, weight, scheme="tile")
    out, verdict = gpu(x, weight, scheme="tile", fault=fault("checksum", 3, 128, 1 << 30))
    assert (verdict.alarms, verdict.cleared) == (0, 1)
    assert torch.equal(out, clean)
    out, verdict = gpu(x, weight, scheme="tile", fault=fault("output", 3, 128, 1 << 12))
    assert (verdict.alarms, verdict.cleared) == (0, 0)
    assert (out != clean).sum() == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", short([math.nan, math.inf], math.inf))
def test_what_is_no_number_alarms_as_in_the_reference(value: float, scheme: str) -> None:
    x, weight = operands("n01", SIZES)
    check = take(weight)
    x[3, 7] = value
    _, verdict = gpu(x, weight, check, scheme=scheme, correct=True)
    assert (verdict.checks, verdict.alarms, verdict.repaired) == (24, 3, 0)
    assert (verdict.row, verdict.ratio, verdict.status) == (3, math.inf, "failed")
    x, weight = operands("n01", SIZES)
    weight[140, 0] = value
    _, verdict = gpu(x, weight, check, scheme=scheme)
    assert (verdict.alarms, verdict.row, verdict.column) == (8, 0, 140)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", short(DTYPES, torch.float16))
def test_a_weight_changed_after_its_checksum(dtype: torch.dtype, scheme: str) -> None:
    x, weight = operands("n01", (8, 140, 64), dtype)
    check = take(weight)
    flip(weight, (130, 17), 1 << (25 if dtype == torch.float32 else 11))
    _, verdict = gpu(x, weight, check, scheme=scheme, correct=True)
    assert verdict.alarms > 4
    assert (verdict.repaired, verdict.column) == (0, 130)


def test_checksums_that_changed_alarm_and_scales_that_grew_hide_nothing() -> None:
    x, weight = operands("n01", (3, 20, 48))
    check = take(weight)
    gpu(x, weight, check, scheme="tile")
    check.columns[0, 9, 0] = 1e3  # also after the kernels' copy of it was made
    _, verdict = gpu(x, weight, check, scheme="tile", correct=True)
    assert (verdict.alarms, verdict.repaired) == (3, 0)
    check, hit = take(weight), fault("accumulator", 1, 13, 1 << 30, step=1)
    check.scales[1] = math.inf
    assert gpu(x, weight, check, fault=hit)[1].alarms == 1
    check.scales[:] = math.inf  # then the exact product decides
    for scheme in SCHEMES:
        _, verdict = gpu(x, weight, check, scheme=scheme)
        assert (verdict.alarms, verdict.cleared, verdict.checks) == (0, 3, 3)
    assert gpu(x, weight, check, fault=hit)[1].alarms == 1


def test_sums_beyond_fp32_are_judged_in_fp64() -> None:
    x, weight = torch.full((2, 1), 1e19), torch.full((128, 1), 1e19)
    for scheme in SCHEMES:
        out, verdict = gpu(x, weight, scheme=scheme)
        assert bool(torch.isfinite(out).all())
        assert (verdict.alarms, verdict.cleared) == (0, 2)


def test_half_weights_whose_sums_are_beyond_half() -> None:
    """c1 of 128 weights of 6e4 is 7.7e6: the columns of fp16 have a scale."""
    x, weight = operands("n01", (4, 128, 64), torch.float16)
    x, weight = x * 2.0**-12, torch.full_like(weight, 6e4)
    for scheme in SCHEMES:
        _, verdict = gpu(x, weight, scheme=scheme)
        assert (verdict.alarms, verdict.cleared) == (0, 0)
        hit = fault("accumulator", 1, 5, 1 << 25, step=1)
        assert gpu(x, weight, scheme=scheme, fault=hit)[1].alarms == 1


def test_refuses_an_unknown_scheme() -> None:
    x, weight = operands("n01", (2, 8, 24))
    check = take(weight)
    args = (x, weight, None, check.columns, check.scales)
    with pytest.raises(KernelError, match="'column'"):
        linear_gpu.checked_linear(*args, scheme="column")
    options = {"inner_first": False, "alpha": 1.0, "beta": 1.0, "correct": False}
    with pytest.raises(KernelError, match="'column'"):
        torch.ops.proa.checked_linear(*args, **options, scheme="column")
    on_cpu = [torch.ops.proa.checked_linear(*args, **options, scheme=s)[0] for s in SCHEMES]
    assert torch.equal(*on_cpu)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_more_blocks_than_programs_settle() -> None:
    """130 blocks for 128 programs: some read two peaks, and the first of equal alarms is named."""
    x, weight = operands("n01", (2080, 8, 16))
    launch = replace(choose(1, 8, torch.float32), block_m=16)
    hit = fault("accumulator", 2075, 3, 1 << 30, step=1)
    _, verdict = gpu(x, weight, launch=launch, scheme="tile", fault=hit)
    assert (verdict.checks, verdict.alarms, verdict.row, verdict.column) == (2080, 1, 2075, 3)
    x[2070], x[40] = math.nan, math.nan
    _, verdict = gpu(x, weight, launch=launch, scheme="tile", fault=hit, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.row) == (3, 1, 40)
