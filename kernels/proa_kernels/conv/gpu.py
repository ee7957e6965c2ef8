"""Checked conv2d on a GPU as an implicit matrix product: imported at the first call, never before.

Rows are output places (b, p, q), columns output channels, inner terms (r, s, c): the channel
last, so that with x in channels_last and Cin / groups a multiple of 16 a row is read 16 bytes at a
time. The check gathers the same A as the product, so borders, strides and dilations need no
correction. Everything else is `proa_kernels.gpu`, as for linear layers; groups one after another.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch.utils.weak import WeakTensorKeyDictionary

from proa_kernels import verdict
from proa_kernels.conv.geometry import Geometry
from proa_kernels.errors import KernelError
from proa_kernels.gpu.call import Product, run
from proa_kernels.gpu.launch import Launch, choose
from proa_kernels.linear.gpu import load_matrix, place_matrix

SCHEMES = ("row", "fused", "tile")
# Tensors -> (version, the same with inner terms as (r, s, c)), for as long as they live.
_WEIGHTS, _COLUMNS = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()


@triton.jit
def load_window(x_ptr, rows_B, inner_K, M, K, geometry):
    """`[B, K]` of the gathered input, zeros in the padding; `geometry`: of `_geometry`."""
    x_n, x_h, x_w, x_c = geometry[0], geometry[1], geometry[2], geometry[3]
    high, wide, out_h, out_w = geometry[8], geometry[9], geometry[10], geometry[11]
    channels, kernel_w = geometry[12], geometry[13]
    pixel_B = rows_B % (out_h * out_w)
    top_B = pixel_B // out_w * geometry[14] - geometry[16]
    left_B = pixel_B % out_w * geometry[15] - geometry[17]
    tap_K = inner_K // channels
    down_K = tap_K // kernel_w * geometry[18]
    right_K = tap_K % kernel_w * geometry[19]
    at_B = (rows_B // (out_h * out_w)).to(tl.int64) * x_n
    at_B += top_B.to(tl.int64) * x_h + left_B.to(tl.int64) * x_w
    at_K = down_K.to(tl.int64) * x_h + right_K.to(tl.int64) * x_w
    at_K += (inner_K % channels).to(tl.int64) * x_c
    h_BK = top_B[:, None] + down_K[None, :]
    w_BK = left_B[:, None] + right_K[None, :]
    inside_BK = (rows_B < M)[:, None] & (inner_K < K)[None, :]
    inside_BK = inside_BK & (h_BK >= 0) & (h_BK < high) & (w_BK >= 0) & (w_BK < wide)
    return tl.load(x_ptr + (at_B[:, None] + at_K[None, :]), mask=inside_BK, other=0.0)


@triton.jit
def place_window(rows_B, columns_J, N, geometry):  # noqa: ARG001
    """Offsets `[B, J]` in the output, by its strides."""
    out_h, out_w = geometry[10], geometry[11]
    pixel_B = rows_B % (out_h * out_w)
    at_B = (rows_B // (out_h * out_w)).to(tl.int64) * geometry[4]
    at_B += (pixel_B // out_w).to(tl.int64) * geometry[5]
    at_B += (pixel_B % out_w).to(tl.int64) * geometry[6]
    return at_B[:, None] + columns_J.to(tl.int64)[None, :] * geometry[7]


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
    scheme: str = "row",
    launch: Launch | None = None,
    fault: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.checked_conv2d`, with no synchronisation; in x's memory format.

    `row` and `fused` are the same here. `launch`: for profilers; `fault`: for campaigns, with
    rows and columns within each group, see `gpu.faults`. Raises KernelError.
    """
    if scheme not in SCHEMES:
        raise KernelError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    walk = Geometry.of(stride, padding, dilation, groups)
    flat = x.dim() == 3
    if flat:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    out = empty_result(x, weight, walk)
    found = []
    for at in range(groups if out.numel() and weight[0].numel() else 0):
        product = product_of(at, x, weight, bias, columns, scales, walk, out)
        chosen = launch or choose(product.rows, product.outputs, x.dtype)
        found.append(run(product, chosen, scheme=scheme, correct=correct, fault=fault))
    judged = _joined(found, weight.shape[0] // groups) if found else _nothing(out, bias)
    return out.squeeze(2) if flat else out, judged


def empty_result(x: torch.Tensor, weight: torch.Tensor, walk: Geometry) -> torch.Tensor:
    """`[B, N, P, Q]`, not written yet. Raises KernelError where the kernel does not fit."""
    sizes = []
    for axis in range(2):
        reach = walk.dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + sum(walk.padding[2 * axis : 2 * axis + 2]) - reach
        if room < 0:
            raise KernelError(f"a kernel of {reach} does not fit {x.shape[2 + axis]} places")
        sizes.append(room // walk.stride[axis] + 1)
    return torch.empty(
        (x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last if _channels_last(x) else torch.contiguous_format,
    )  # fmt: skip


def product_of(
    at: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    walk: Geometry,
    out: torch.Tensor,
) -> Product:
    """Group `at` as a matrix product, into its slice of `out`. Arguments as of `checked_conv2d`."""
    groups, channels = walk.groups, weight.shape[1]
    outputs = weight.shape[0] // groups
    tiles = scales.shape[1] // groups
    inputs, results = x.narrow(1, at * channels, channels), out.narrow(1, at * outputs, outputs)
    inner = weight[0].numel()
    rows = out.shape[0] * out.shape[2] * out.shape[3]
    weight_NK = _ordered(weight).narrow(0, at * outputs, outputs)
    columns_PKT = _columns(columns, weight.shape, groups, at)
    addend_MN = None if bias is None else bias.narrow(0, at * outputs, outputs).expand(rows, -1)
    flat = _is_flat(weight, walk) and _channels_last(x) and _channels_last(out)
    return Product(
        x=inputs, weight=weight_NK, weight_strides=(inner, 1), columns=columns_PKT,
        scales=scales.narrow(1, at * tiles, tiles).contiguous(), addend=addend_MN,
        addend_strides=(0, 1 if bias is None else bias.stride(0)), out=results,
        rows=rows, outputs=outputs, inner=inner,
        load=load_matrix if flat else load_window, place=place_matrix if flat else place_window,
        geometry=(inner, 1) if flat else _geometry(inputs, results, weight.shape, walk),
        alpha=1.0, beta=1.0,
    )  # fmt: skip


def _geometry(
    inputs: torch.Tensor, results: torch.Tensor, kernel: torch.Size, walk: Geometry
) -> tuple[int, ...]:
    """What `load_window` and `place_window` read: strides by (b, h, w, c), sizes, the window."""
    order = (0, 2, 3, 1)
    return (
        *(inputs.stride(axis) for axis in order),
        *(results.stride(axis) for axis in order),
        *inputs.shape[2:], *results.shape[2:], kernel[1], kernel[3],
        *walk.stride, walk.padding[0], walk.padding[2], *walk.dilation,
    )  # fmt: skip


def _is_flat(weight: torch.Tensor, walk: Geometry) -> bool:
    """Whether each place of the result is a product with one place of the input."""
    one = weight.shape[2] == weight.shape[3] == 1 and walk.groups == 1
    return one and walk.stride == (1, 1) and not any(walk.padding)


def _channels_last(x: torch.Tensor) -> bool:
    return x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)


def _ordered(weight: torch.Tensor) -> torch.Tensor:
    """`[N, K]` of a weight, inner terms as (r, s, c): a view where it is in channels_last, else a
    copy that is kept. A view, if it were kept, would keep its tensor alive for ever."""

    def make() -> torch.Tensor:
        return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)

    if weight.is_contiguous(memory_format=torch.channels_last):
        return make()
    found: torch.Tensor = _kept(_WEIGHTS, weight, make)
    return found


def _columns(columns: torch.Tensor, kernel: torch.Size, groups: int, at: int) -> torch.Tensor:
    """`[parts, K, 2 T]` of one group in the same order; the same tensor at every call, since what
    is packed of it is kept with it."""
    if groups == 1 and kernel[2] == kernel[3] == 1:
        return columns

    def make() -> tuple[torch.Tensor, ...]:
        split = columns.unflatten(1, tuple(kernel[1:])).permute(0, 2, 3, 1, 4)
        whole: torch.Tensor = split.reshape(len(columns), columns.shape[1], groups, -1)
        return tuple(whole[:, :, one].clone() for one in range(groups))

    found: torch.Tensor = _kept(_COLUMNS, columns, make)[at]
    return found


def _kept(store: WeakTensorKeyDictionary, tensor: torch.Tensor, make: Callable[[], Any]) -> Any:
    """What was made of a tensor, made again when it changes. Raises KernelError when that is
    within the capture of a CUDA graph, whose replays would not see it."""
    version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001
    known = store.get(tensor)
    if known is None or known[0] != version:
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            raise KernelError("call a checked operator once before capturing it in a CUDA graph")
        known = store[tensor] = (version, make())
    return known[1]


def _joined(found: list[torch.Tensor], outputs: int) -> torch.Tensor:
    """One verdict of the groups', whose columns count on from group to group."""
    if len(found) == 1:
        return found[0]
    groups = torch.stack(found)
    starts = torch.arange(len(found), dtype=torch.float64, device=groups.device) * outputs
    columns = groups[:, verdict.COLUMN]
    groups[:, verdict.COLUMN] = torch.where(columns >= 0, columns + starts, columns)
    whole = verdict.merge(list(groups.unbind()))[0].clone()
    # `merge` takes the first alarm; within one call it is the worst.
    ratio = torch.where(groups[:, verdict.ALARMS] > 0, groups[:, verdict.RATIO], -1.0)
    worst = groups.index_select(0, ratio.argmax().view(1))[0]
    whole[verdict.ROW :] = worst[verdict.ROW :]
    whole[verdict.LAYER].fill_(-1.0)  # a number put in would be copied from the host
    return whole


def _nothing(out: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """No places, no channels, or sums over nothing: nothing is multiplied, so nothing checked."""
    out.zero_()
    if bias is not None:
        out.add_(bias.view(1, -1, 1, 1))
    return verdict.nothing(out.device)
