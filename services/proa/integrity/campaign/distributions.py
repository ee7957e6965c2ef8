"""Operands of matrix products: the distributions that checks are tried on (facts: abft D.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch

Sizes = tuple[int, int, int]  # M rows, N outputs, K inner
Operands = tuple[torch.Tensor, torch.Tensor]  # x [M, K], weight [N, K]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _normal(sizes: Sizes, g: torch.Generator) -> Operands:
    rows, outputs, inner = sizes
    return torch.randn(rows, inner, generator=g), torch.randn(outputs, inner, generator=g)


def _relu(sizes: Sizes, g: torch.Generator) -> Operands:
    x, weight = _normal(sizes, g)
    return x.relu(), weight


def _coherent(sizes: Sizes, g: torch.Generator) -> Operands:
    """All positive: sigma of the output far below its mean."""
    x, weight = _normal(sizes, g)
    return x.abs(), weight.abs()


def _outlier(sizes: Sizes, g: torch.Generator) -> Operands:
    """One input channel of a hundred is a hundred times larger."""
    x, weight = _normal(sizes, g)
    x[:, : max(1, sizes[2] // 100)] *= 100.0
    return x, weight


def _student(sizes: Sizes, g: torch.Generator) -> Operands:
    """Heavy tails: t with 3 degrees of freedom."""
    x, weight = _normal(sizes, g)
    for one in (x, weight):
        one /= (torch.randn(3, *one.shape, generator=g).square().mean(0) + 1e-6).sqrt()
    return x, weight


def _cancelling(sizes: Sizes, g: torch.Generator) -> Operands:
    """The second half of the sum takes the first away: partial sums far above the result."""
    x, weight = _normal(sizes, g)
    half = sizes[2] // 2
    x[:, half : 2 * half] = -x[:, :half]
    noise = torch.randn(sizes[1], half, generator=g)
    weight[:, half : 2 * half] = weight[:, :half] * (1.0 + 1e-3 * noise)
    return x, weight


def _constant(sizes: Sizes, g: torch.Generator) -> Operands:  # noqa: ARG001  # one signature
    """Every step of every sum rounds the same way."""
    rows, outputs, inner = sizes
    return torch.full((rows, inner), 0.1), torch.full((outputs, inner), 0.1)


def _sparse(sizes: Sizes, g: torch.Generator) -> Operands:
    """One-hot rows, and some of zeros."""
    rows, _, inner = sizes
    x = torch.zeros(rows, inner)
    x[torch.arange(rows), torch.randint(inner, (rows,), generator=g)] = 1.0
    x[::3] = 0.0
    return x, _normal(sizes, g)[1]


Maker = Callable[[Sizes, torch.Generator], Operands]
SMOOTH: dict[str, Maker] = {"n01": _normal, "relu": _relu, "outlier": _outlier, "t3": _student}
REGULAR: dict[str, Maker] = SMOOTH | {"coherent": _coherent, "cancelling": _cancelling}
DEGENERATE: dict[str, Maker] = {"constant": _constant, "sparse": _sparse}
KINDS = REGULAR | DEGENERATE


def operands(
    kind: str, sizes: Sizes, dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> Operands:
    """`x [M, K]` and `weight [N, K]` of a distribution, from a seed."""
    x, weight = KINDS[kind](sizes, torch.Generator().manual_seed(seed))
    return x.to(dtype), weight.to(dtype)
