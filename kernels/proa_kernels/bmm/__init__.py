"""Checked products of two computed matrices."""

from proa_kernels.bmm.ops import checked_bmm, dup_bmm
from proa_kernels.bmm.reference import checked_product

__all__ = ["checked_bmm", "checked_product", "dup_bmm"]
