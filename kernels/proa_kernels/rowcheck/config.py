"""Thresholds of the checked product: the closed form T2 (facts: abft D.2).

    limit = noise (2 max(|C|, |a| |W_t|_F / sqrt K) + max(|check|, |a| |c| / sqrt K)) + floor
    noise = 2^-24 (2 sqrt K + 6)

|C|, |a|: 2-norms of the accumulators of one row in one tile, and of the input row. T2's number of
rounding steps is K / 16 on tensor cores, which truncate: there noise = 2^-24 (K / 16 + 8), taken
from a model of such sums and not yet measured. fp32 fused multiply-adds round to nearest and walk
at random, hence sqrt K. 2 and 6 are from measurement (docs/abft.md): normal, relu,
outlier, student-t, coherent and cancelling data stay near half of the limit at worst.
Constant inputs times constant weights round the same way at each step and exceed it. So may other
kernels: then `reference` recomputes, and what repeats within the deterministic bound is rounding.
"""

from __future__ import annotations

import math

from proa_kernels.checksum import TILE

UNIT = 2.0**-24  # rounding of fp32 to nearest
WALK = 2.0
EXTRA = 6.0
TENSOR_STEP = 16  # products of half types that a tensor core adds at once
TENSOR_EXTRA = 8.0
_UNDERFLOW = 2.0**-126  # per product, even where denormals are flushed
_SPLIT_UNDERFLOW = 2.0**-133  # smallest bf16


def noise(inner: int, *, tensor_cores: bool = False) -> float:
    """Relative size of the rounding of sums over `inner` products.

    Tensor cores truncate once per TENSOR_STEP products: errors add up instead of walking.
    """
    if tensor_cores:
        return UNIT * (inner / TENSOR_STEP + TENSOR_EXTRA)
    return UNIT * (WALK * math.sqrt(inner) + EXTRA)


def floor(inner: int) -> float:
    """What underflow may hide in one check, whatever the scale."""
    return inner * TILE * _UNDERFLOW


def split_floor(inner: int) -> float:
    """The same for the stored checksum, per unit of |a|."""
    return math.sqrt(inner) * _SPLIT_UNDERFLOW


def bound(inner: int, *, tensor_cores: bool = False) -> float:
    """Deterministic relative bound of a sum of `inner` fp32 products: Higham's gamma.

    A tensor core aligns the products and the sum of a step and cuts each off at a unit of twice
    the size: (TENSOR_STEP + 1) / TENSOR_STEP terms a product.
    """
    unit = UNIT * (2.0 * (TENSOR_STEP + 1) / TENSOR_STEP if tensor_cores else 1.0)
    return inner * unit / (1.0 - inner * unit)
