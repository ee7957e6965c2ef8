"""fp32 matrix products made of bf16 products (BF16x3, BF16x6, BF16x9). docs/emulated.md."""

from proa_kernels.emulated import ops as _ops  # noqa: F401  (registers proa::emulated_mm)
from proa_kernels.emulated.reference import emulated_product, joined, split

__all__ = ["emulated_product", "joined", "split"]
