"""Operands of the distributions that thresholds are tried on, made on the device."""

from __future__ import annotations

import torch

KINDS = ("n01", "relu", "coherent", "outlier", "t3", "cancelling")


def operands(
    kind: str, sizes: tuple[int, int, int], dtype: torch.dtype, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `[M, K]` and `weight` `[N, K]` of one of KINDS."""
    rows, outputs, inner = sizes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    x, weight = normal(rows, inner), normal(outputs, inner)
    if kind == "relu":
        x = x.relu()
    elif kind == "coherent":
        x, weight = x.abs(), weight.abs()
    elif kind == "outlier":
        x[:, : max(1, inner // 100)] *= 100.0
    elif kind == "t3":
        for one in (x, weight):
            squares = sum(normal(*one.shape).square() for _ in range(3))
            one /= (squares / 3.0 + 1e-6).sqrt()
    elif kind == "cancelling":
        half = inner // 2
        x[:, half : 2 * half] = -x[:, :half]
        weight[:, half : 2 * half] = weight[:, :half] * (1.0 + 1e-3 * normal(outputs, half))
    else:
        assert kind == "n01"
    return x.to(dtype), weight.to(dtype)
