"""Checked matrix products (ABFT): wrong results are found, located and repaired in the same pass.

`protect` rewrites an exported program, `ABFTLinear` and `ABFTConv2d` are eager faces of the same
operators. One folder per operator: `reference.py` is its definition, on any device and in plain
torch.
Importing this package registers the operators `torch.ops.proa.*`: a protected program loads only
where that has happened. Nothing of proa is imported here; docs/abft.md has the formulas.
"""

from proa_kernels import emulated as _emulated  # noqa: F401  # registers its operators
from proa_kernels.conv import ABFTConv2d
from proa_kernels.errors import KernelError, PlanRefused, WeightsRefused
from proa_kernels.linear import ABFTLinear
from proa_kernels.protection import Coverage, Layer, Plan, protect, weights_digest
from proa_kernels.verdict import Verdict

__all__ = [
    "ABFTConv2d",
    "ABFTLinear",
    "Coverage",
    "KernelError",
    "Layer",
    "Plan",
    "PlanRefused",
    "Verdict",
    "WeightsRefused",
    "protect",
    "weights_digest",
]
