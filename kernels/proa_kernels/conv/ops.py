"""Registration of `proa::checked_conv2d` with torch."""

from __future__ import annotations

from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.conv.geometry import Geometry, empty_result
from proa_kernels.conv.reference import checked_convolution
from proa_kernels.errors import KernelError
from proa_kernels.rowcheck import Tamper

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "checked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor columns, Tensor scales, *,"
    " int[] stride, int[] padding, int[] dilation, int groups, bool correct, str scheme='row')"
    " -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.no_grad()
def checked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    correct: bool = False,
    scheme: str = "row",  # noqa: ARG001  # how a GPU does it; on a CPU they are one and the same
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution of `x` `[B, C, H, W]` with `weight` `[N, C / groups, R, S]`, and its verdict;
    without H and R it is one of rows. `stride`, `dilation`: an entry per dimension; `padding`: two,
    before and after. `columns`, `scales`: of `conv.checksum.take`. fp32 results have the bits of
    torch's own; half types are summed in fp32 and rounded once. No gradient: for inference.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    flat = x.dim() == 3
    acc, found = checked_convolution(
        x.unsqueeze(2) if flat else x, weight.unsqueeze(2) if flat else weight,
        bias, columns, scales, geometry, correct=correct, tamper=tamper,
    )  # fmt: skip
    return (acc.squeeze(2) if flat else acc).to(x.dtype), found


def _kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_conv2d(x, weight, bias, columns, scales, **options)


def _cuda(x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The GPU's kernels; imported at the first call, so that no other machine needs Triton."""
    from proa_kernels.conv import gpu

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        found: tuple[torch.Tensor, torch.Tensor] = gpu.checked_conv2d(x, *args, **options)
    return found


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,  # noqa: ARG001
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    correct: bool,  # noqa: ARG001
    scheme: str = "row",  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() != weight.dim() or x.dtype != weight.dtype:
        raise KernelError(f"x is {x.dim()}-d {x.dtype}, weight {weight.dim()}-d {weight.dtype}")
    if columns.shape[1] != weight[0].numel() or columns.shape[2] != 2 * scales.shape[1]:
        raise KernelError("the checksum is of another weight")
    out = empty_result(x, weight, Geometry.of(stride, padding, dilation, groups))
    return out, x.new_empty((verdict.WIDTH,), dtype=torch.float64)


_LIBRARY.impl("checked_conv2d", _kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("checked_conv2d", _cuda, "CUDA")
torch.library.register_fake("proa::checked_conv2d", _fake, lib=_LIBRARY)
