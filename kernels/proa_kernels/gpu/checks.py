"""Device functions of a check: the sums of a tile, the threshold T2, and what is noted of a fault.

Letters: B rows of a block, J columns of a tile (a power of 2 of at most TILE), K inner, M rows,
T tiles. Values beyond M, N and K are zeros, so masks are for memory alone.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def step_of(j, TILE: tl.constexpr):
    """TILE times v: 127, -127, 125, -125, ..., 1, -1."""
    return (TILE - 1 - j + j % 2) * (1 - 2 * (j % 2))


@triton.jit
def sums_of(acc_BJ, TILE: tl.constexpr):
    """Sum, sum weighted by v (see `checksum`) and sum of squares of each row, `[B]`."""
    steps_J = step_of(tl.arange(0, acc_BJ.shape[1]), TILE).to(acc_BJ.dtype) / TILE
    return tl.sum(acc_BJ, 1), tl.sum(acc_BJ * steps_J[None, :], 1), tl.sum(acc_BJ * acc_BJ, 1)


@triton.jit
def checksums_of(chk_BC, units_ptr, tile):
    """The two checksums `[B]` of the products with a tile's columns: even and odd ones."""
    odd_C = tl.arange(0, chk_BC.shape[1]) % 2
    first_B = tl.sum(tl.where(odd_C[None, :] == 0, chk_BC, 0.0), 1)
    second_B = tl.sum(tl.where(odd_C[None, :] == 1, chk_BC, 0.0), 1)
    return first_B * tl.load(units_ptr + 2 * tile), second_B * tl.load(units_ptr + 2 * tile + 1)


@triton.jit
def scales_of(scales_ptr, tile, tiles, inner):
    """|W_t|_F, |c1| and |c2| over sqrt K, fp64: of each pair stored the smaller, as it may grow."""
    root = tl.sqrt(tl.full((), inner, tl.float64))
    here = scales_ptr + 3 * tile
    there = here + 3 * tiles
    return (
        tl.minimum(tl.load(here), tl.load(there)) / root,
        tl.minimum(tl.load(here + 1), tl.load(there + 1)) / root,
        tl.minimum(tl.load(here + 2), tl.load(there + 2)) / root,
    )


@triton.jit
def ratio_of(sums, checksums, squares, size, scales, limits):
    """Worst residual over its threshold; Inf where a value or the threshold is no number.

    `sums`, `checksums`: two each; `size`: |a|; `scales`: of the tile; `limits`: noise, floor and
    split_floor of `linear.config`. All of one dtype, fp32 or fp64.
    """
    product = 2.0 * tl.maximum(tl.sqrt(squares), size * scales[0])
    spare = limits[1] + limits[2] * size
    limit_1 = limits[0] * (product + tl.maximum(tl.abs(checksums[0]), size * scales[1])) + spare
    limit_2 = limits[0] * (product + tl.maximum(tl.abs(checksums[1]), size * scales[2])) + spare
    ratio_1 = tl.abs(sums[0] - checksums[0]) / limit_1
    ratio_2 = tl.abs(sums[1] - checksums[1]) / limit_2
    numbers = (ratio_1 == ratio_1) & (ratio_2 == ratio_2)
    numbers = numbers & (limit_1 < float("inf")) & (limit_2 < float("inf"))
    return tl.where(numbers, tl.maximum(ratio_1, ratio_2), float("inf"))


@triton.jit
def note(notes_ptr, plane, rows_B, tile, M, tiles, value_B):
    """Store one plane of `[3, M, T]`: 0 and 1 the sums, 2 squares (fused), later the ratio."""
    at = notes_ptr + (plane * M + rows_B.to(tl.int64)) * tiles + tile
    tl.store(at, value_B, mask=rows_B < M)


@triton.jit
def report(peaks_ptr, notes_ptr, block, rows_B, tile, M, tiles, sums, ratio_B):
    """The block's worst ratio, always; each row's sums and ratio, only with a suspicion."""
    peak = tl.max(ratio_B, 0)
    tl.store(peaks_ptr + block.to(tl.int64) * tiles + tile, peak)
    if peak > 1.0:
        note(notes_ptr, 0, rows_B, tile, M, tiles, sums[0])
        note(notes_ptr, 1, rows_B, tile, M, tiles, sums[1])
        note(notes_ptr, 2, rows_B, tile, M, tiles, ratio_B)


@triton.jit
def finished(acc_BJ, addend_ptr, rows_B, columns_J, M, N, addend_strides, alpha, beta):
    """`alpha acc + beta addend` in fp32, before the rounding. `addend_ptr` None: no addend."""
    value_BJ = acc_BJ * alpha
    if addend_ptr is not None:
        at_BJ = rows_B[:, None].to(tl.int64) * addend_strides[0]
        at_BJ += columns_J[None, :].to(tl.int64) * addend_strides[1]
        inside_BJ = (rows_B[:, None] < M) & (columns_J[None, :] < N)
        value_BJ += beta * tl.load(addend_ptr + at_BJ, mask=inside_BJ, other=0.0).to(tl.float32)
    return value_BJ


@triton.jit
def bits_of(value):
    """The bits of fp32, bf16 or fp16, to compare NaN with NaN."""
    wide: tl.constexpr = value.dtype.primitive_bitwidth == 32
    bits: tl.constexpr = tl.int32 if wide else tl.int16
    return value.to(bits, bitcast=True)
