"""Faults in the accumulators of checked products, for tests and for workers started with faults.

Production never imports this module: the registered kernels have no hook, and from the import on
the CPU kernels of all checked operators are others, for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from proa_kernels.attention import checked_attention, dup_attention
from proa_kernels.bmm import checked_bmm, dup_bmm
from proa_kernels.conv.ops import checked_conv2d
from proa_kernels.dup.ops import dup_conv2d, dup_linear
from proa_kernels.integer import checked_int_mm
from proa_kernels.linear.ops import checked_linear
from proa_kernels.rowcheck import Tamper

Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Operator -> its definition, which takes what the operator takes, and `tamper`.
KERNELS: dict[str, Kernel] = {
    "checked_linear": checked_linear,
    "checked_bmm": checked_bmm,
    "dup_bmm": dup_bmm,
    "checked_attention": checked_attention,
    "dup_attention": dup_attention,
    "checked_int_mm": checked_int_mm,
    "checked_conv2d": checked_conv2d,
    "dup_linear": dup_linear,
    "dup_conv2d": dup_conv2d,
}


class Injector:
    """Holds what is done to the next calls' accumulators, and the index of the current call: an
    operator may make several products in one."""

    def __init__(self) -> None:
        self.tamper: Tamper | None = None
        self.call = -1

    def hooked(self, kernel: Kernel) -> Kernel:
        def call(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
            self.call += 1
            return kernel(*args, tamper=self.tamper, **options)

        return call


_INJECTOR = Injector()
_LIBRARY: Any = torch.library.Library("proa", "IMPL")  # type: ignore[no-untyped-call]
for _name, _kernel in KERNELS.items():
    _LIBRARY.impl(_name, _INJECTOR.hooked(_kernel), "CPU")


@contextmanager
def injecting(tamper: Tamper) -> Iterator[Injector]:
    """For its duration `tamper(accumulators, attempt)` follows every product of a checked call.

    The accumulators are as the operator lays them out, `[rows, columns]` or `[B, N, P, Q]` of a
    convolution, and changed in place. attempt 0 is the product, 1 the recomputation, 2 that of
    `dup`: a transient fault leaves those alone. `call` of what this gives counts the calls of
    checked operators from 0. Not for several threads at once.
    """
    before = _INJECTOR.tamper, _INJECTOR.call
    _INJECTOR.tamper, _INJECTOR.call = tamper, -1
    try:
        yield _INJECTOR
    finally:
        _INJECTOR.tamper, _INJECTOR.call = before


def flip(tensor: torch.Tensor, index: tuple[int, ...], bits: int) -> None:
    """XOR the element at `index` with `bits`, in place. fp32, bf16 or fp16."""
    whole = torch.int32 if tensor.element_size() == 4 else torch.int16
    width = 32 if whole == torch.int32 else 16
    signed = bits - (1 << width) if bits >> (width - 1) else bits
    words = tensor.view(whole)
    words[index] = words[index] ^ signed
