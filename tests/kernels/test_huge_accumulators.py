"""An accumulator near 1e20 or beyond, whose square is no fp32: every operator must see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.images import Shape, images
from kernels.matrices import operands
from kernels.sheets import sheets
from proa_kernels import Verdict, checksum, integer
from proa_kernels.conv.checksum import take as take_kernel
from proa_kernels.emulated import check
from proa_kernels.injection import KERNELS, flip, injecting
from proa_kernels.rowcheck import Tamper

BIT = 1 << 30  # of fp32: below 1 it becomes huge, from 1 to 2 no number, above almost nothing
Call = Callable[[str, torch.dtype], tuple[torch.Tensor, torch.Tensor]]


def linear(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = operands("n01", (20, 200, 96), dtype)
    taken = checksum.take(weight)
    stored = (taken.columns, taken.scales) if name == "checked_linear" else ()
    op = getattr(torch.ops.proa, name)
    found: tuple[torch.Tensor, torch.Tensor] = op(
        x, weight, None, *stored, inner_first=False, alpha=1.0, beta=1.0, correct=True
    )
    return found


def conv(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = Shape()
    x, weight = images("n01", shape, dtype)
    taken = take_kernel(weight, 1)
    stored = (taken.columns, taken.scales) if name == "checked_conv2d" else ()
    op = getattr(torch.ops.proa, name)
    found: tuple[torch.Tensor, torch.Tensor] = op(
        x, weight, None, *stored, correct=True, **shape.options
    )
    return found


def bmm(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = sheets("n01", 3, (20, 200, 96), dtype)
    op = getattr(torch.ops.proa, name)
    found: tuple[torch.Tensor, torch.Tensor] = op(
        x, y, None, transposed=False, alpha=1.0, beta=1.0, correct=True
    )
    return found


def attention(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = sheets("n01", 6, (20, 200, 16), dtype)
    query, key = x[None], y.mT[None]
    op = getattr(torch.ops.proa, name)
    found: tuple[torch.Tensor, torch.Tensor] = op(
        query, key, key, None, causal=False, scale=None, correct=True
    )
    return found


def int_mm(name: str, _dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(-128, 128, size, generator=generator, dtype=torch.int8)
        for size in ((20, 96), (96, 200))
    )
    op = getattr(torch.ops.proa, name)
    found: tuple[torch.Tensor, torch.Tensor] = op(x, weight, integer.take(weight), correct=True)
    return found


CALLS: dict[str, Call] = {
    "checked_linear": linear,
    "dup_linear": linear,
    "checked_conv2d": conv,
    "dup_conv2d": conv,
    "checked_bmm": bmm,
    "dup_bmm": bmm,
    "checked_attention": attention,
    "dup_attention": attention,
    "checked_int_mm": int_mm,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def hit(place: int, product: int, value: float | None) -> tuple[Tamper, list[float]]:
    """One element of the call's `product`-th product: bit 30 flipped, or a value put in."""
    seen, after = -1, []

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        nonlocal seen
        seen += attempt == 0
        if attempt or seen != product:
            return
        flat = acc.view(-1)
        at = place % len(flat)
        if value is None or not acc.dtype.is_floating_point:
            wide = acc.element_size() == 4
            if acc.dtype == torch.int32:
                flat[at] ^= BIT
            else:
                flip(flat, (at,), BIT if wide else BIT >> 16)
        else:
            flat[at] = value
        after.append(float(flat[at]))

    return tamper, after


def test_every_operator_is_tried() -> None:
    assert CALLS.keys() == KERNELS.keys()


@pytest.mark.parametrize("value", [None, 1e20, -3e19, 3e38])
@pytest.mark.parametrize(
    ("name", "product"),
    [(name, 0) for name in CALLS] + [("checked_attention", 1), ("checked_attention", 2)],
)
def test_it_is_found_and_repaired(name: str, product: int, value: float | None) -> None:
    for dtype in DTYPES:
        clean, _ = CALLS[name](name, dtype)
        for place in (0, 7, 1005, 3333):
            tamper, after = hit(place, product, value)
            with injecting(tamper):
                out, found = CALLS[name](name, dtype)
            verdict = Verdict.read(found)
            assert len(after) == 1
            assert (verdict.alarms >= 1, verdict.status) == (True, "corrected"), (dtype, after)
            assert torch.equal(out, clean)


@pytest.mark.parametrize("products", [3, 6, 9])
@pytest.mark.parametrize("value", [None, 1e20, -3e19, 3e38])
def test_the_emulated_product_too(products: int, value: float | None) -> None:
    """It has no hook: its check is asked directly."""
    x, weight = operands("n01", (20, 200, 96))
    taken = checksum.take(weight)
    right = check.widened(weight.T, taken.columns)
    wide, _ = torch.ops.proa.emulated_mm(x, right, products)
    for row, column in ((0, 0), (7, 130), (19, 199)):
        wrong = wide.clone()
        if value is None:
            flip(wrong, (row, column), BIT)
        else:
            wrong[row, column] = value
        verdict = Verdict.read(check.judged(x, wrong, taken.scales, products)[1])
        assert (verdict.alarms, verdict.row) == (1, row)
