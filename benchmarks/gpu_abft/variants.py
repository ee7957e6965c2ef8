"""One layer in every form that is timed: unprotected, `tile`, `fused`, `dup`, and the vendor's.

All forms of the kernel family are one source, `proa_kernels.gpu.product.accumulate`; `plain` is the
unprotected one, with the same choice of blocks.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from gpu_abft.shapes import Shape
from proa_kernels.checksum import TILE, ramp, split
from proa_kernels.conv import gpu as conv_gpu
from proa_kernels.conv.geometry import Geometry
from proa_kernels.gpu.call import Product, run
from proa_kernels.gpu.checks import finished
from proa_kernels.gpu.launch import Launch, candidates
from proa_kernels.gpu.product import accumulate, block_of
from proa_kernels.linear.gpu import load_matrix, place_matrix

Call = Callable[[], object]
_COMPARE = 4096


@triton.jit
def plain_kernel(
    x_ptr, w_ptr, addend_ptr, out_ptr, M, N, K, weight_strides, addend_strides, geometry, alpha,
    beta,
    LOAD: tl.constexpr, PLACE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`product_kernel` without a check, its sums and its notes."""
    tiles = tl.cdiv(N, TILE)
    block, tile = block_of(tl.program_id(0), M, tiles, BM, GROUP)
    rows_B = block * BM + tl.arange(0, BM)
    columns_J = tile * TILE + tl.arange(0, BN)
    acc_BJ, _, _ = accumulate(
        x_ptr, w_ptr, x_ptr, rows_B, columns_J, tile, M, N, K, weight_strides, geometry, None, 0,
        LOAD=LOAD, CHECK=False, SIZES=False, USED=0, WIDTH=8, BK=BK, TILE=TILE,
        PRECISION=PRECISION, INJECT=False,
    )  # fmt: skip
    value_BJ = finished(acc_BJ, addend_ptr, rows_B, columns_J, M, N, addend_strides, alpha, beta)
    inside_BJ = (rows_B[:, None] < M) & (columns_J[None, :] < N)
    target = out_ptr + PLACE(rows_B, columns_J, N, geometry)
    tl.store(target, value_BJ.to(out_ptr.dtype.element_ty), mask=inside_BJ)


@triton.jit
def differs_kernel(a_ptr, b_ptr, found_ptr, count, BLOCK: tl.constexpr):
    """Whether two results have other bits, for each block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + at, mask=at < count, other=0)
    b = tl.load(b_ptr + at, mask=at < count, other=0)
    tl.store(found_ptr + tl.program_id(0), tl.max((a != b).to(tl.int32), 0))


def plain(product: Product, launch: Launch) -> None:
    """Fills `product.out`, unchecked."""
    one = product
    blocks = -(-one.rows // launch.block_m) * -(-one.outputs // TILE)
    plain_kernel[(blocks,)](
        one.x, one.weight, one.addend, one.out, one.rows, one.outputs, one.inner,
        one.weight_strides, one.addend_strides, one.geometry, one.alpha, one.beta,
        LOAD=one.load, PLACE=one.place, BM=launch.block_m, BN=launch.block_n, BK=launch.block_k,
        GROUP=launch.group, TILE=TILE, PRECISION="ieee", num_warps=launch.warps,
        num_stages=launch.stages,
    )  # fmt: skip


def twice(product: Product, other: torch.Tensor, found: torch.Tensor, launch: Launch) -> None:
    """`dup`: the product, the product again, and a comparison of all bits."""
    plain(product, launch)
    plain(replace(product, out=other), launch)
    whole = torch.int16 if other.element_size() == 2 else torch.int32
    differs_kernel[(len(found),)](
        product.out.view(whole), other.view(whole), found, other.numel(), BLOCK=_COMPARE
    )


@dataclass
class Case:
    """Operands of one layer on the device, ready to be multiplied."""

    product: Product
    vendor: Call
    other: torch.Tensor  # room for a second result
    found: torch.Tensor

    def checked(self, scheme: str, launch: Launch) -> torch.Tensor:
        """The verdict of a checked product."""
        one = self.product
        if scheme == "tile" and not launch.sum_sizes:
            sizes = torch.linalg.vector_norm(one.x, dim=1, dtype=torch.float32)
            one = replace(one, sizes=sizes)
        return run(one, launch, scheme=scheme, correct=False, fault=None)

    def call(self, scheme: str, launch: Launch) -> Call:
        """What is timed, for `base`, `tile`, `fused` or `dup`."""
        if scheme == "base":
            return lambda: plain(self.product, launch)
        if scheme == "dup":
            return lambda: twice(self.product, self.other, self.found, launch)
        return lambda: self.checked(scheme, launch)


def case_of(shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Case:
    """Random operands: x of unit scale, weights of scale 1 / sqrt K. One group only."""
    generator = torch.Generator(device).manual_seed(seed)
    rows, outputs, inner = shape.product

    def random(*sizes: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(sizes, generator=generator, device=device, dtype=torch.float32)
        return (values * scale).to(dtype)

    bias = random(outputs)
    if not shape.kernel:
        return _linear(random(rows, inner), random(outputs, inner, scale=inner**-0.5), bias)
    x = random(shape.rows, shape.channels, shape.high, shape.wide)
    weight = random(outputs, shape.channels, shape.kernel, shape.kernel, scale=inner**-0.5)
    return _conv(shape, x, weight, bias)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Case:
    columns, scales = columns_of(weight)
    out = x.new_empty(x.shape[0], weight.shape[0])
    product = Product(
        x=x, weight=weight, weight_strides=(weight.stride(0), 1), columns=columns, scales=scales,
        addend=bias.expand(len(x), -1), addend_strides=(0, 1), out=out, rows=len(x),
        outputs=len(weight), inner=x.shape[1], load=load_matrix, place=place_matrix,
        geometry=(x.stride(0), x.stride(1)), alpha=1.0, beta=1.0,
    )  # fmt: skip
    return _case(product, lambda: torch.nn.functional.linear(x, weight, bias))


def _conv(shape: Shape, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Case:
    x = x.to(memory_format=torch.channels_last)
    weight = weight.to(memory_format=torch.channels_last)
    stride, padding = (shape.stride,) * 2, shape.padding
    walk = Geometry.of(stride, (padding,) * 4, (1, 1), 1)
    out = conv_gpu.empty_result(x, weight, walk)
    columns, scales = columns_of(weight.flatten(1))
    product = conv_gpu.product_of(0, x, weight, bias, columns, scales, walk, out)
    return _case(
        product, lambda: torch.nn.functional.conv2d(x, weight, bias, stride, (padding, padding))
    )


def _case(product: Product, vendor: Call) -> Case:
    other = torch.empty_like(product.out)
    blocks = -(-other.numel() // _COMPARE)
    found = torch.empty(blocks, dtype=torch.int32, device=other.device)
    return Case(product, vendor, other, found)


def columns_of(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`checksum.take` without its hash, which would copy every weight to the host."""
    sums, norms = [], []
    for start in range(0, len(weight_NK), TILE):
        part = weight_NK[start : start + TILE].double()
        both = ramp(len(part), torch.float64, part.device) @ part
        sums.append(both)
        norms.append(torch.stack([part.norm(), both[0].norm(), both[1].norm()]))
    single = weight_NK.dtype == torch.float32
    exact = torch.cat(sums).T.contiguous()
    columns = split(exact, torch.float32 if single else torch.bfloat16, 1 if single else 3)
    scales = torch.stack(norms)
    return columns, torch.stack([scales, scales])


def launches(product: Product) -> list[Launch]:
    """What is timed: the table's choice, one of another height, and |x| summed in the other way.
    Few, since each is compiled for every kind of shape."""
    found = candidates(product.rows, product.outputs, product.x.dtype)
    first, matrix = found[0], product.load is load_matrix
    kept = [first if matrix else replace(first, sum_sizes=True)]
    height = {128: 64, 64: 16}.get(first.block_m)
    for one in found[1:]:
        same = one.block_k == first.block_k and one.stages == 4
        if one.block_m == height and same:
            kept.append(replace(one, sum_sizes=True))
            break
    if first.block_m == 128 and matrix:
        kept.append(replace(first, sum_sizes=not first.sum_sizes))
    return kept
