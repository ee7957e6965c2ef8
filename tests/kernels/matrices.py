"""Operands of matrix products: the distributions that thresholds are tried on, and counted runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from proa_kernels import Verdict
from proa_kernels.checksum import Checksum, take
from proa_kernels.linear import checked_product

Sizes = tuple[int, int, int]  # M, N, K


def _normal(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows, outputs, inner = sizes
    return torch.randn(rows, inner, generator=g), torch.randn(outputs, inner, generator=g)


def _relu(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = _normal(sizes, g)
    return x.relu(), weight


def _coherent(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = _normal(sizes, g)
    return x.abs(), weight.abs()


def _outlier(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = _normal(sizes, g)
    x[:, : max(1, sizes[2] // 100)] *= 100.0
    return x, weight


def _student(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy tails: t with 3 degrees of freedom."""
    x, weight = _normal(sizes, g)
    for one in (x, weight):
        one /= (torch.randn(3, *one.shape, generator=g).square().mean(0) + 1e-6).sqrt()
    return x, weight


def _cancelling(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The second half of the sum takes the first away: partial sums far above the result."""
    x, weight = _normal(sizes, g)
    half = sizes[2] // 2
    x[:, half : 2 * half] = -x[:, :half]
    noise = torch.randn(sizes[1], half, generator=g)
    weight[:, half : 2 * half] = weight[:, :half] * (1.0 + 1e-3 * noise)
    return x, weight


def _constant(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Every step of every sum rounds the same way."""
    rows, outputs, inner = sizes
    return torch.full((rows, inner), 0.1), torch.full((outputs, inner), 0.1)


def _sparse(sizes: Sizes, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot rows, and some of zeros."""
    rows, _, inner = sizes
    x = torch.zeros(rows, inner)
    x[torch.arange(rows), torch.randint(inner, (rows,), generator=g)] = 1.0
    x[::3] = 0.0
    return x, _normal(sizes, g)[1]


Maker = Callable[[Sizes, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
REGULAR: dict[str, Maker] = {
    "n01": _normal,
    "relu": _relu,
    "coherent": _coherent,
    "outlier": _outlier,
    "t3": _student,
    "cancelling": _cancelling,
}
DEGENERATE: dict[str, Maker] = {"constant": _constant, "sparse": _sparse}
KINDS = REGULAR | DEGENERATE


def operands(
    kind: str, sizes: Sizes, dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x [M, K]` and `weight [N, K]` of a distribution, from a seed."""
    x, weight = KINDS[kind](sizes, torch.Generator().manual_seed(seed))
    return x.to(dtype), weight.to(dtype)


def product(
    x: torch.Tensor, weight: torch.Tensor, check: Checksum | None = None, **options: object
) -> tuple[torch.Tensor, Verdict]:
    """The checked product with a checksum of the weight as it is, or as it was."""
    check = check or take(weight)
    options = {"correct": False, **options}
    acc, found = checked_product(x, weight, check.columns, check.scales, **options)  # type: ignore[arg-type]
    return acc, Verdict.read(found)


def flip_each_row(acc: torch.Tensor, columns: torch.Tensor, bits: int) -> None:
    """XOR one element of each row of fp32 accumulators."""
    signed = bits - (1 << 32) if bits >> 31 else bits
    acc.view(torch.int32)[torch.arange(len(acc)), columns] ^= signed
