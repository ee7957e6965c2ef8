"""`protect`: checked operators in an exported program, in place of its matrix products."""

from proa_kernels.protection.coverage import Coverage, Layer
from proa_kernels.protection.plan import MODES, SCHEMES, Plan
from proa_kernels.protection.rewrite import protect, weights_digest

__all__ = ["MODES", "SCHEMES", "Coverage", "Layer", "Plan", "protect", "weights_digest"]
