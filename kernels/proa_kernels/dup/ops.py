"""Registration of `proa::dup_linear` and `proa::dup_conv2d` with torch."""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.conv.geometry import Geometry, convolve, empty_result
from proa_kernels.dup.reference import Compute, duplicated
from proa_kernels.errors import KernelError
from proa_kernels.rowcheck import Tamper

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "dup_linear(Tensor x, Tensor weight, Tensor? addend, *, bool inner_first, float alpha,"
    " float beta, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_LIBRARY.define(
    "dup_conv2d(Tensor x, Tensor weight, Tensor? bias, *, int[] stride, int[] padding,"
    " int[] dilation, int groups, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.no_grad()
def dup_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,
    *,
    inner_first: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`alpha x weight.T + beta addend` by torch, twice, and the verdict. Arguments as those of
    `checked_linear`; the addend is covered, the weight is not."""
    weight_NK = weight.T if inner_first else weight

    def compute() -> torch.Tensor:
        if alpha == beta == 1.0 and (addend is None or addend.dim() == 1):
            return torch.nn.functional.linear(x, weight_NK, addend)
        out = torch.nn.functional.linear(x, weight_NK)
        out = out.mul_(alpha) if alpha != 1.0 else out
        return out if addend is None or beta == 0.0 else out.add_(addend, alpha=beta)

    made = _tampered(compute, tamper)
    return duplicated(made, weight_NK.shape[0], -1, correct=correct)


@torch.no_grad()
def dup_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's convolution, twice, and the verdict. Arguments as those of `checked_conv2d`."""
    geometry = Geometry.of(stride, padding, dilation, groups)
    made = _tampered(lambda: convolve(x, weight, bias, geometry), tamper)
    return duplicated(made, weight.shape[0], 1, correct=correct)


def _tampered(compute: Any, tamper: Tamper | None) -> Compute:
    def made(attempt: int) -> torch.Tensor:
        out: torch.Tensor = compute()
        if tamper is not None:
            tamper(out, attempt)
        return out

    return made


def _linear(
    x: torch.Tensor, weight: torch.Tensor, addend: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return dup_linear(x, weight, addend, **options)


def _conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return dup_conv2d(x, weight, bias, **options)


def _fake_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,  # noqa: ARG001
    *,
    inner_first: bool,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    inner, outputs = weight.shape if inner_first else weight.shape[::-1]
    if x.shape[-1] != inner or x.dtype != weight.dtype:
        raise KernelError(f"x has {x.shape[-1]} {x.dtype} inner, weight {inner} {weight.dtype}")
    return x.new_empty((*x.shape[:-1], outputs)), _verdict(x)


def _fake_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,  # noqa: ARG001
    *,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    correct: bool,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    out = empty_result(x, weight, Geometry.of(stride, padding, dilation, groups))
    return out, _verdict(x)


def _verdict(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((verdict.WIDTH,), dtype=torch.float64)


_LIBRARY.impl("dup_linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("dup_conv2d", _conv2d, "CompositeExplicitAutograd")
torch.library.register_fake("proa::dup_linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("proa::dup_conv2d", _fake_conv2d, lib=_LIBRARY)
