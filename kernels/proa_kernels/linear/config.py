"""Thresholds of the checked product: see `proa_kernels.rowcheck.config`."""

from proa_kernels.rowcheck.config import (
    EXTRA,
    TENSOR_EXTRA,
    TENSOR_STEP,
    UNIT,
    WALK,
    bound,
    floor,
    noise,
    split_floor,
)

__all__ = [
    "EXTRA",
    "TENSOR_EXTRA",
    "TENSOR_STEP",
    "UNIT",
    "WALK",
    "bound",
    "floor",
    "noise",
    "split_floor",
]
