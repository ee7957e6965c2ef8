"""fp32 products made of bf16 products: the definition, in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.matrices import KINDS, operands
from proa_kernels import KernelError, Verdict
from proa_kernels.checksum import take
from proa_kernels.emulated import config, emulated_product, joined, split
from proa_kernels.emulated.reference import power, shifts, unscale

PRODUCTS = (3, 6, 9)
FP32_MAX = torch.finfo(torch.float32).max


def floats(count: int, seed: int) -> torch.Tensor:
    """Finite fp32 of random bits: every exponent, denormals too."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator)
    values = bits.to(torch.int32).view(torch.float32)
    return values[torch.isfinite(values)]


def relative(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


def one_by_one(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """SGEMM as a GPU without tensor cores sums: fused multiply-adds, one after another."""
    acc_MN = torch.zeros(len(a_MK), b_KN.shape[1])
    wide_MK, wide_KN = a_MK.double(), b_KN.double()
    for k in range(a_MK.shape[1]):
        acc_MN = (acc_MN.double() + wide_MK[:, k : k + 1] * wide_KN[k]).float()
    return acc_MN


def test_the_split_is_exact_for_every_finite_value() -> None:
    edges = [0.0, -0.0, FP32_MAX, -FP32_MAX, 2.0**-149, -(2.0**-149), 2.0**-126, 1 + 2.0**-23]
    x = torch.cat([floats(300_000, 0), torch.tensor(edges)])
    parts = split(x)
    assert parts.dtype == torch.bfloat16
    assert bool(torch.isfinite(parts.float()).all())
    assert torch.equal(joined(parts), x.double())


def test_two_parts_hold_sixteen_bits() -> None:
    x = floats(100_000, 1)
    x = x[(x.abs() > 2.0**-100) & (x.abs() < 2.0**100)]
    gap = (joined(split(x)[:2]) - x.double()).abs()
    assert bool((gap <= 2.0**-17 * x.double().abs()).all())
    assert not bool((gap == 0).all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_in_the_first_part(value: float) -> None:
    parts = split(torch.tensor([value, 1.0]))
    assert math.isnan(value) == bool(torch.isnan(parts[0, 0]))
    assert math.isnan(value) or float(parts[0, 0]) == value
    assert parts[1:, 0].tolist() == [0.0, 0.0]


def test_rows_are_scaled_by_powers_of_two_and_back() -> None:
    x = floats(64 * 256, 2)[: 64 * 240].view(64, 240)
    x = torch.ldexp(torch.frexp(x).mantissa, torch.randint(-40, 41, x.shape))
    shift, special = shifts(x)
    assert not bool(special.any())
    scaled = x * power(shift)[:, None]
    assert bool(((scaled.abs().amax(1) >= 2.0**30) & (scaled.abs().amax(1) < 2.0**31)).all())
    assert torch.equal(unscale(scaled, shift, torch.zeros(240, dtype=torch.int32)), x)


def test_shifts_of_odd_rows() -> None:
    rows = [[0.0, 0.0], [1.0, 2.0**-91], [1.0, 2.0**-89], [math.inf, 1.0], [1e-45, 0.0]]
    shift, special = shifts(torch.tensor(rows))
    assert special.tolist() == [False, True, False, True, False]
    assert shift.tolist() == [0, 30, 30, 0, config.SHIFT_MAX]


@pytest.mark.parametrize("products", PRODUCTS)
def test_extreme_results_neither_overflow_nor_vanish_early(products: int) -> None:
    a = torch.tensor([[2.0**120], [2.0**-100]])
    b = torch.tensor([[2.0**-120, 2.0**7, 2.0**-40]])
    out, fallbacks = emulated_product(a, b, products)
    assert torch.equal(out, a @ b)
    assert int(fallbacks) == 0
    assert bool(torch.isinf(emulated_product(a, a.T, products)[0][0, 0]))


def test_special_tiles_fall_back_and_are_counted() -> None:
    a, weight = operands("n01", (300, 260, 70))
    b = weight.T.contiguous()
    a[3, 4], b[7, 259] = math.inf, math.nan
    a[290] *= 2.0**80
    a[290, 5] = 2.0**-80
    plain = a @ b
    for products in PRODUCTS:
        out, fallbacks = emulated_product(a, b, products)
        # Rows 0 and 290 mark two of three rows of tiles, column 259 one of three columns.
        assert int(fallbacks) == 3 + 3 + 1
        assert torch.equal(out[:128].isnan(), plain[:128].isnan())
        assert torch.equal(out[:128].isinf(), plain[:128].isinf())
        assert torch.allclose(out[256:], plain[256:], equal_nan=True, rtol=1e-4)
        clean = out[128:256, :256]
        assert relative(clean, a[128:256].double() @ b[:, :256].double()) < 2e-5


def test_a_small_term_that_the_rest_cancels_is_not_lost() -> None:
    """Beside 2^100 it would underflow in the scaled row: the tile falls back."""
    a, b = torch.tensor([[2.0**100, 2.0**-60]]), torch.tensor([[0.0], [1.0]])
    out, fallbacks = emulated_product(a, b, 9)
    assert float(out) == 2.0**-60
    assert int(fallbacks) == 1


def _spread(sizes: tuple[int, int, int], *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exponents from -20 to 20."""
    generator = torch.Generator().manual_seed(seed)
    a, b = operands("n01", sizes, seed=seed)
    return tuple(  # type: ignore[return-value]
        torch.ldexp(one, torch.randint(-20, 21, one.shape, generator=generator)) for one in (a, b)
    )


def _data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = (24, 16, 2048)
    if kind == "uniform":
        generator = torch.Generator().manual_seed(4)
        a, weight = (torch.rand(n, sizes[2], generator=generator) for n in sizes[:2])
    elif kind == "exponents":
        a, weight = _spread(sizes, seed=3)
    else:
        a, weight = operands(kind, sizes, seed=3)
    return a, weight.T.contiguous()


@pytest.mark.parametrize("kind", ["n01", "uniform", "exponents", "t3"])
def test_errors_on_a_truncating_unit(kind: str) -> None:
    """Facts G: promoted, x6 and x9 are better than SGEMM; without promotion x9 is worse."""
    a, b = _data(kind)
    exact = a.double() @ b.double()
    sgemm = relative(one_by_one(a, b), exact)
    error = {
        products: relative(emulated_product(a, b, products, truncating=True)[0], exact)
        for products in PRODUCTS
    }
    naive = emulated_product(a, b, 9, truncating=True, promote=a.shape[1])[0]
    assert error[6] <= sgemm
    assert error[9] <= sgemm
    assert error[3] < 4e-5
    assert relative(naive, exact) > max(sgemm, 3.0 * error[9])


@pytest.mark.parametrize("kind", KINDS)
def test_checked_products_are_clean(kind: str) -> None:
    x, weight = operands(kind, (200, 300, 512), seed=2)
    check = take(weight)
    for products in PRODUCTS:
        out, found, _ = torch.ops.proa.checked_emulated_mm(
            x, weight.T, check.columns, check.scales, products
        )
        verdict = Verdict.read(found)
        assert (verdict.checks, verdict.alarms) == (600, 0)
        assert verdict.ratio < 0.6
        assert torch.equal(out, torch.ops.proa.emulated_mm(x, weight.T, products)[0])


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_changed_weight_is_found_in_every_row_and_placed(products: int) -> None:
    x, weight = operands("n01", (50, 300, 256), seed=4)
    check = take(weight)
    weight[203, 7] += 3.0
    _, found, _ = torch.ops.proa.checked_emulated_mm(
        x, weight.T, check.columns, check.scales, products
    )
    verdict = Verdict.read(found)
    assert verdict.alarms >= 48  # rows whose x is near zero there do not see it
    assert verdict.column == 203
    assert verdict.status == "failed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_a_fault(value: float) -> None:
    x, weight = operands("n01", (5, 40, 64))
    check = take(weight)
    x[2, 3] = value
    _, found, fallbacks = torch.ops.proa.checked_emulated_mm(
        x, weight.T, check.columns, check.scales, 6
    )
    assert Verdict.read(found).alarms == 1
    assert (Verdict.read(found).row, int(fallbacks)) == (2, 1)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1)])
def test_small_and_empty_products(shape: tuple[int, int, int]) -> None:
    rows, columns, inner = shape
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    out, fallbacks = torch.ops.proa.emulated_mm(a, b, 6)
    assert torch.equal(out, a @ b)
    assert int(fallbacks) == 0


def test_what_does_not_fit_is_refused() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    check = take(b.T.contiguous())
    for bad, products, word in (
        (b.double(), 6, "b is"),
        (torch.ones(2, 2), 6, "inner"),
        (b, 4, "4"),
    ):
        with pytest.raises(KernelError, match=word):
            torch.ops.proa.emulated_mm(a, bad, products)
    with pytest.raises(KernelError, match="another weight"):
        torch.ops.proa.checked_emulated_mm(a.T, torch.ones(2, 2), check.columns, check.scales, 6)


def test_the_operators_can_be_traced() -> None:
    """Shapes and dtypes without data, as export and compile ask for them."""
    weight = operands("n01", (1, 130, 8))[1]
    check = take(weight)
    real = torch.ops.proa.checked_emulated_mm(
        torch.ones(5, 8), weight.T, check.columns, check.scales, 6
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ops.proa.checked_emulated_mm(
            torch.ones(5, 8), weight.T, check.columns, check.scales, 6
        )
    assert [(one.shape, one.dtype) for one in fake] == [(one.shape, one.dtype) for one in real]
    assert [one.stride() for one in fake] == [one.stride() for one in real]
