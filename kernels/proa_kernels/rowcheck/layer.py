"""What the screen has to know of a layer, made once: sums of its bias, and the quick sieve's limit.

The sieve's limit is one for all tiles: `unit` times |a| or what stands for it, at least `least`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from proa_kernels.checksum import ramp
from proa_kernels.rowcheck import config
from proa_kernels.rowcheck.memo import Memo
from proa_kernels.rowcheck.product import Product, Tiling

WIDE = 2.0  # tiles whose limits are so far apart are brought to one limit first
FAR = 2.0**10  # farther apart that would underflow


@dataclass(frozen=True)
class Limit:
    """`shares`: fp32 `[T, 2, 1]`, what residuals are multiplied with, where limits differ much;
    `bias_norms`: fp32 `[T]`, of the bias in each tile."""

    unit: float
    least: float
    shares: torch.Tensor | None
    bias_norms: torch.Tensor | None


@dataclass(frozen=True)
class Layer:
    """`bias_sums`: fp32 `[T, 2, 1]`, of the bias in each tile. `limits` are two equal ones: the
    smaller counts, since one that grew in memory would hide faults."""

    bias_sums: torch.Tensor | None
    limits: tuple[Limit, Limit]

    @property
    def limit(self) -> tuple[float, float, torch.Tensor | None]:
        """`unit`, `least` and `shares`."""
        one, other = self.limits
        shares = one.shares
        if shares is not None and other.shares is not None:
            shares = torch.maximum(shares, other.shares)
        return min(one.unit, other.unit), min(one.least, other.least), shares

    @property
    def bias_norms(self) -> torch.Tensor | None:
        one, other = (limit.bias_norms for limit in self.limits)
        return None if one is None or other is None else torch.minimum(one, other)


_LAYERS: Memo[Layer] = Memo()


def layer_of(product: Product) -> Layer:
    """What is known of the layer that makes this product."""
    key = (product.tiling, product.inner)
    return _LAYERS.of(lambda: _make(product), product.stored, product.bias, key)


def _make(product: Product) -> Layer:
    sums = None if product.bias is None else _tiled(product.bias, product.tiling)[0]
    return Layer(sums, (_limit(product), _limit(product)))


def _limit(product: Product) -> Limit:
    inner = product.inner
    noise = config.noise(inner)
    units_T3 = product.scales / math.sqrt(inner)
    units_T2 = noise * (units_T3[:, 1:] + 2.0 * units_T3[:, :1]) + config.split_floor(inner)
    # Beyond fp32 they are Inf, which does not pass; as fp64 numbers torch would refuse them.
    units_T2 = units_T2.float()
    unit, most = float(units_T2.amin()), float(units_T2.amax())
    least_T = units_T2.new_full((len(units_T2),), config.floor(inner))
    norms_T = None
    if product.bias is not None:
        norms_T = _tiled(product.bias, product.tiling)[1]
        # |C|, or the bias, is what T2 counts.
        least_T = torch.maximum(norms_T * (2.0 * noise), least_T)
    shares = None
    if WIDE * unit < most < FAR * unit:  # a narrow tile, or a small one
        shares_T2 = unit / units_T2
        least_T = least_T * shares_T2.amin(1)
        shares = shares_T2[..., None]
    return Limit(unit, float(least_T.amin()), shares, norms_T)


def _tiled(bias_N: torch.Tensor, tiling: Tiling) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sums `[T, 2, 1]` and the norms `[T]` of the bias in each tile, fp32."""
    sums, norms = [], []
    for start, count, width in tiling.runs():
        part_TJ = bias_N[start : start + count * width].view(count, width).double()
        sums.append(part_TJ @ ramp(width, torch.float64, bias_N.device).T)
        norms.append(torch.linalg.vector_norm(part_TJ, dim=1))
    return torch.cat(sums).float()[..., None], torch.cat(norms).float()
