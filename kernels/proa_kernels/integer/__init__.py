"""Checked products of int8 matrices: exact, so that no single error is missed."""

from proa_kernels.integer.ops import checked_int_mm
from proa_kernels.integer.reference import checked_product, take

__all__ = ["checked_int_mm", "checked_product", "take"]
