"""Faults in the accumulators of checked products, for tests and for workers started with faults.

Production never imports this module: the registered kernels have no hook, and from the import on
the operator's CPU kernel is another one, for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from proa_kernels.linear.ops import checked_linear
from proa_kernels.linear.reference import Tamper


class Injector:
    """Holds what is done to the next calls' accumulators."""

    def __init__(self) -> None:
        self.tamper: Tamper | None = None

    def kernel(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return checked_linear(*args, tamper=self.tamper, **options)


_INJECTOR = Injector()
_LIBRARY: Any = torch.library.Library("proa", "IMPL")  # type: ignore[no-untyped-call]
_LIBRARY.impl("checked_linear", _INJECTOR.kernel, "CPU")


@contextmanager
def injecting(tamper: Tamper) -> Iterator[None]:
    """For its duration `tamper(accumulators, attempt)` follows every product of a checked call.

    attempt 0 is the product, 1 the recomputation: a transient fault leaves 1 alone. Not for
    several threads at once.
    """
    before, _INJECTOR.tamper = _INJECTOR.tamper, tamper
    try:
        yield
    finally:
        _INJECTOR.tamper = before


def flip(tensor: torch.Tensor, index: tuple[int, ...], bits: int) -> None:
    """XOR the element at `index` with `bits`, in place. fp32, bf16 or fp16."""
    whole = torch.int32 if tensor.element_size() == 4 else torch.int16
    width = 32 if whole == torch.int32 else 16
    signed = bits - (1 << width) if bits >> (width - 1) else bits
    words = tensor.view(whole)
    words[index] = words[index] ^ signed
