"""Clean products never alarm, and are the products they should be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.matrices import DEGENERATE, KINDS, REGULAR, operands, product
from proa_kernels.checksum import TILE, take
from proa_kernels.linear import checked_linear, config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Against fp64, relative to the norm of what is summed; the last rounding is that of the dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", REGULAR)
def test_no_alarm_and_headroom(kind: str, dtype: torch.dtype) -> None:
    worst, rows = 0.0, 0
    for seed, sizes in enumerate([(200, 256, 64), (150, 128, 512), (60, 200, 2048), (1, 384, 512)]):
        acc, verdict = product(*operands(kind, sizes, dtype, seed=seed))
        assert bool(torch.isfinite(acc).all())
        assert (verdict.alarms, verdict.cleared, verdict.row, verdict.column) == (0, 0, -1, -1)
        assert verdict.checks == sizes[0] * math.ceil(sizes[1] / TILE)
        worst, rows = max(worst, verdict.ratio), rows + sizes[0]
    assert rows * len(REGULAR) * len(DTYPES) > 7000
    assert 0.0 < worst < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data_may_be_suspicious_but_never_alarms(kind: str, dtype: torch.dtype) -> None:
    for sizes in ((100, 130, 64), (40, 256, 1024), (16, 128, 4096)):
        _, verdict = product(*operands(kind, sizes, dtype))
        assert (verdict.alarms, verdict.repaired) == (0, 0)


def test_rounding_beyond_the_threshold_is_cleared_in_either_mode() -> None:
    """An error that repeats and lies within the deterministic bound is rounding, not a fault."""
    x, weight = operands("n01", (4, 128, 1024))
    bound = config.bound(1024) * float(x[2].abs() @ weight[5].abs())

    def biased(acc: torch.Tensor, _attempt: int) -> None:
        acc[2, 5] += 0.5 * bound

    def beyond(acc: torch.Tensor, _attempt: int) -> None:
        acc[2, 5] += 2.0 * bound

    for correct in (False, True):
        _, verdict = product(x, weight, tamper=biased, correct=correct)
        assert (verdict.alarms, verdict.cleared) == (0, 1)
        assert verdict.ratio > 1.0
        _, verdict = product(x, weight, tamper=beyond, correct=correct)
        assert (verdict.alarms, verdict.repaired, verdict.cleared) == (1, 0, 0)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(st.integers(0, 60), st.integers(1, 300), st.integers(1, 600)),
    dtype=st.sampled_from(DTYPES),
    scales=st.tuples(st.integers(-149, 100), st.integers(-149, 100)),
    correct=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_scale_and_dtype(
    kind: str,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    scales: tuple[int, int],
    correct: bool,
    seed: int,
) -> None:
    x, weight = operands(kind, sizes, seed=seed)
    span = 14 if dtype == torch.float16 else 200
    powers = [2.0 ** max(-span, min(span, scale)) for scale in scales]
    x, weight = ((one.double() * powers[i]).to(dtype) for i, one in enumerate((x, weight)))
    # What overflows is not clean; and sums of a tile's weights must be fp32.
    exact = x.double() @ weight.double().T
    largest = float((x.double().abs() @ weight.double().abs().T).max()) if x.numel() else 0.0
    fits = bool(torch.isfinite(x).all() and torch.isfinite(weight).all())
    if not fits or largest > 3e38 or float(weight.double().abs().max()) > 1e36:
        return
    acc, verdict = product(x, weight, correct=correct)
    assert verdict.alarms == 0, verdict
    assert acc.shape == exact.shape


def test_sums_beyond_fp32_of_finite_accumulators_do_not_alarm() -> None:
    x, weight = torch.full((2, 1), 1e19), torch.full((128, 1), 1e19)
    acc, verdict = product(x, weight)
    assert bool(torch.isfinite(acc).all())
    assert bool(torch.isinf(acc.sum(1)).all())
    assert (verdict.alarms, verdict.cleared) == (0, 2)


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (3, 0, 8)])
def test_a_batch_of_none(shape: tuple[int, ...]) -> None:
    weight = operands("n01", (1, 5, 8))[1]
    check = take(weight)
    out, verdict = checked_linear(torch.zeros(shape), weight, None, check.columns, check.scales)
    assert out.shape == (*shape[:-1], 5)
    assert verdict.tolist() == [0, 0, 0, 0, 0, -1, -1, -1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner_first", [False, True])
def test_the_output_is_the_product(dtype: torch.dtype, inner_first: bool) -> None:
    x, weight = operands("n01", (24, 130, 512), dtype)
    addend = operands("n01", (1, 1, 130), dtype)[0][0]
    check = take(weight)
    out, _ = checked_linear(
        x.view(4, 6, 512), weight.T if inner_first else weight, addend, check.columns, check.scales,
        inner_first=inner_first, alpha=0.5, beta=2.0,
    )  # fmt: skip
    exact = 0.5 * (x.double() @ weight.double().T) + 2.0 * addend.double()
    assert (out.shape, out.dtype) == ((4, 6, 130), dtype)
    error = (out.view(24, 130).double() - exact).norm() / exact.norm()
    assert float(error) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_fp32(dtype: torch.dtype) -> None:
    """A product rounded to the dtype would lose the small terms."""
    inner = 4096
    x = torch.full((1, inner), 2.0**-6, dtype=dtype)
    x[0, 0] = 256.0
    acc, verdict = product(x, torch.ones(2, inner, dtype=dtype))
    assert acc.tolist() == [[256.0 + (inner - 1) * 2.0**-6] * 2]
    assert verdict.alarms == 0


def test_a_row_alone_or_of_one_dimension() -> None:
    x, weight = operands("n01", (1, 130, 40))
    check = take(weight)
    flat, _ = checked_linear(x[0], weight, None, check.columns, check.scales)
    assert flat.shape == (130,)
    torch.testing.assert_close(flat, weight @ x[0])
