"""Checked linear, addmm and mm with a constant weight."""

from proa_kernels.linear.module import ABFTLinear
from proa_kernels.linear.ops import DTYPES, checked_linear
from proa_kernels.linear.reference import Tamper, checked_product

__all__ = ["DTYPES", "ABFTLinear", "Tamper", "checked_linear", "checked_product"]
