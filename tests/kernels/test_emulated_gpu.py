"""The GPU kernels of bf16xN products, in Triton's CPU interpreter: compared with the definition.

The interpreter multiplies the bits of bf16 (triton#11584): there the kernel widens the parts first.
"""

from __future__ import annotations

import math

import pytest
import torch

from kernels.interpreted import interpreting
from kernels.matrices import operands
from proa_kernels.emulated import config, emulated_product, reference

with interpreting():
    from proa_kernels.emulated import gpu

PRODUCTS = (3, 6, 9)


def product(
    a: torch.Tensor, b: torch.Tensor, products: int, launch: gpu.Launch | None = None
) -> tuple[torch.Tensor, int]:
    with interpreting():
        out, fallbacks = gpu.emulated_product(a, b, products, launch=launch)
    return out, int(fallbacks)


def near(out: torch.Tensor, want: torch.Tensor, limit: float) -> bool:
    return float((out.double() - want.double()).norm() / want.double().norm()) <= limit


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (130, 20, 70), (4, 140, 130)])
def test_it_is_the_reference(sizes: tuple[int, int, int], products: int) -> None:
    a, weight = operands("t3", sizes, seed=1)
    out, fallbacks = product(a, weight.T, products)
    want, _ = emulated_product(a, weight.T, products)
    assert fallbacks == 0
    assert near(out, want, 1.5e-7)  # two orders of fp32 sums of the same bf16 products
    assert near(out, a.double() @ weight.double().T, {3: 2e-5, 6: 2e-7, 9: 2e-7}[products])


def test_wide_and_narrow_tiles_agree() -> None:
    a, weight = operands("n01", (20, 270, 70), seed=2)
    wide, narrow = (
        product(a, weight.T, 6, gpu.Launch(block_n=columns))[0] for columns in (256, 128)
    )
    assert near(wide, narrow, 1e-7)


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_and_scales_are_the_references_to_the_bit(transposed: bool) -> None:
    x, _ = operands("outlier", (50, 1, 140), seed=3)
    x = torch.ldexp(x, torch.randint(-30, 31, x.shape, generator=torch.Generator().manual_seed(3)))
    x[4] = 0.0
    if transposed:
        x = x.T.contiguous().T
    with interpreting():
        parts, shift = gpu.prepared(x, 9)
    want, special = reference.shifts(x)
    assert not bool(special.any())
    assert torch.equal(shift, want)
    scaled = reference.split(x * reference.power(want)[:, None])
    weights = torch.tensor([2.0 ** (-config.STEP * i) for i in range(3)])
    assert torch.equal(parts[:, :50, :140].float(), scaled.float() * weights[:, None, None])
    assert float(parts[:, 50:].abs().sum() + parts[:, :, 140:].abs().sum()) == 0.0


@pytest.mark.parametrize("products", [3, 9])
def test_special_tiles_fall_back_and_are_counted(products: int) -> None:
    a, weight = operands("n01", (140, 270, 40), seed=4)
    b = weight.T.contiguous()
    a[3, 4], b[7, 265], b[8, 10] = math.inf, math.nan, 1e-40
    out, fallbacks = product(a, b, products)
    want, count = emulated_product(a, b, products)
    assert fallbacks == int(count) == 3 + 2  # the upper row of tiles, and two of the lower
    plain = a @ b
    assert torch.equal(out.isnan(), plain.isnan())
    assert torch.equal(out.isinf(), plain.isinf())
    finite = plain.isfinite()
    assert near(out[finite], want[finite], 2e-7)


def test_extreme_scales_and_results() -> None:
    a = torch.tensor([[2.0**120], [2.0**-100], [1e-44]])
    b = torch.tensor([[2.0**-120, 2.0**7, 2.0**-40]])
    out, fallbacks = product(a, b, 9)
    assert torch.equal(out, a @ b)
    assert fallbacks == 0


def test_empty_products() -> None:
    assert product(torch.ones(0, 3), torch.ones(3, 4), 6)[0].shape == (0, 4)
    assert torch.equal(product(torch.ones(3, 0), torch.ones(0, 4), 6)[0], torch.zeros(3, 4))
