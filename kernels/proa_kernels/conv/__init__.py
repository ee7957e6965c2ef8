"""Checked convolutions with a constant kernel."""

from proa_kernels.conv.geometry import Geometry
from proa_kernels.conv.module import ABFTConv2d
from proa_kernels.conv.ops import DTYPES, checked_conv2d

__all__ = ["DTYPES", "ABFTConv2d", "Geometry", "checked_conv2d"]
