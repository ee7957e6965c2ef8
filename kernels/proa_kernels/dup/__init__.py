"""Products computed twice and compared: for tiny layers."""

from proa_kernels.dup.ops import DTYPES, dup_conv2d, dup_linear

__all__ = ["DTYPES", "dup_conv2d", "dup_linear"]
