"""What workers say of themselves: outputs beside a model's own, for frontends that ask for them."""

from __future__ import annotations

from proa.spec.types import TensorSpec

LOAD = TensorSpec("proa.load", "INT64", (2,))
"""Computations finished, and microseconds busy with them, since the worker's start."""
ABFT = TensorSpec("proa.abft", "FP64", (8,))
"""What the checks of a protected program found: the summary of its verdict (docs/abft.md), the same
for each of the batch."""
CORRUPTION = "silent data corruption"
"""How the error of a request begins whose result is wrong and could not be repaired."""
