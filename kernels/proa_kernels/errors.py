"""What protection refuses.

KernelError
├── PlanRefused        the plan does not fit this program, or asks for what is not there
└── WeightsRefused     a weight that no checksum can be taken of (NaN, Inf, sums beyond fp32)
"""

from __future__ import annotations


class KernelError(ValueError):
    """Base of everything this package raises on purpose."""


class PlanRefused(KernelError):
    """The plan and the program do not go together; the message names the field or the layer."""


class WeightsRefused(KernelError):
    """A weight is not finite, or its sums are beyond fp32."""
