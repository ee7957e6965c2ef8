"""The product of a block, and the two kernels that make it: `tile`, checked at once, and `fused`.

Generic in how the left operand is read and where results lie, so that a convolution is the same
kernel. `LOAD(x_ptr, rows_B, inner_K, M, K, geometry)` gives `[B, K]` of x, zeros beyond M and K;
`PLACE(rows_B, columns_J, N, geometry)` gives the offsets `[B, J]` of results. `geometry` is a
tuple of whole numbers that only they read. Deterministic: one program makes one block, in one
order, and the kernel that settles suspicions calls the same `accumulate`.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from proa_kernels.gpu.checks import (
    checksums_of,
    finished,
    note,
    ratio_of,
    report,
    scales_of,
    sums_of,
)
from proa_kernels.gpu.faults import tamper_operand, tamper_sum


@triton.jit
def accumulate(
    x_ptr, w_ptr, packed_ptr, rows_B, columns_J, tile, M, N, K, weight_strides, geometry,
    fault_ptr, attempt,
    LOAD: tl.constexpr, CHECK: tl.constexpr, SIZES: tl.constexpr, USED: tl.constexpr,
    WIDTH: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    INJECT: tl.constexpr,
):  # fmt: skip
    """fp32 `x @ w.T` of a block; with CHECK the products with its tile's columns `[B, 16]`, and
    with SIZES the squares of |x| `[B]`, else zeros."""
    B: tl.constexpr = rows_B.shape[0]
    acc_BJ = tl.zeros((B, columns_J.shape[0]), tl.float32)
    chk_BC = tl.zeros((B, 16), tl.float32)
    squares_B = tl.zeros((B,), tl.float32)
    at_C = tl.arange(0, 16)
    # Whole numbers of 64 bits for the block, of 32 within it: registers for pointers are dear.
    weights_ptr = w_ptr + tile.to(tl.int64) * TILE * weight_strides[0]
    at_J = tl.arange(0, columns_J.shape[0]) * weight_strides[0]
    at_K = tl.arange(0, BK) * weight_strides[1]
    columns_ptr = packed_ptr + tile.to(tl.int64) * K * WIDTH
    for step in range(tl.cdiv(K, BK)):
        inner_K = step * BK + tl.arange(0, BK)
        x_BK = LOAD(x_ptr, rows_B, inner_K, M, K, geometry)
        inside_KJ = (inner_K[:, None] < K) & (columns_J[None, :] < N)
        block_ptr = weights_ptr + tl.full((), step, tl.int64) * BK * weight_strides[1]
        w_KJ = tl.load(block_ptr + at_K[:, None] + at_J[None, :], mask=inside_KJ, other=0.0)
        if INJECT:
            x_BK = tamper_operand(x_BK, 2, rows_B, inner_K, fault_ptr, attempt)
            w_KJ = tamper_operand(w_KJ, 3, inner_K, columns_J, fault_ptr, attempt)
            acc_BJ = tamper_sum(acc_BJ, 1, rows_B, columns_J, step, fault_ptr, attempt)
        acc_BJ = tl.dot(x_BK, w_KJ, acc_BJ, input_precision=PRECISION)
        if CHECK:
            inside_KC = (inner_K[:, None] < K) & (at_C[None, :] < USED)
            at_KC = inner_K[:, None] * WIDTH + at_C[None, :]
            c_KC = tl.load(columns_ptr + at_KC, mask=inside_KC, other=0.0)
            chk_BC = tl.dot(x_BK, c_KC, chk_BC, input_precision=PRECISION)
        if SIZES:
            wide_BK = x_BK.to(tl.float32)
            squares_B += tl.sum(wide_BK * wide_BK, 1)
    if INJECT:
        acc_BJ = tamper_sum(acc_BJ, 1, rows_B, columns_J, tl.cdiv(K, BK), fault_ptr, attempt)
    return acc_BJ, chk_BC, squares_B


@triton.jit
def block_of(program, M, tiles, BM: tl.constexpr, GROUP: tl.constexpr):
    """Row block and tile of a program: GROUP row blocks share a tile's weights in the cache."""
    blocks = tl.cdiv(M, BM)
    first = program // (GROUP * tiles) * GROUP
    size = tl.minimum(blocks - first, GROUP)
    within = program % (GROUP * tiles)
    return first + within % size, within // size


@triton.jit
def product_kernel(
    x_ptr, w_ptr, packed_ptr, units_ptr, scales_ptr, sizes_ptr, addend_ptr, out_ptr, peaks_ptr,
    notes_ptr, counter_ptr, fault_ptr, M, N, K, weight_strides, addend_strides, geometry, limits,
    alpha, beta,
    LOAD: tl.constexpr, PLACE: tl.constexpr, CHECK: tl.constexpr, USED: tl.constexpr,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, INJECT: tl.constexpr,
):  # fmt: skip
    """One block of the product. CHECK: `tile`, judged here; else `fused`, sums for `thin`.

    `out` PLACE of `[M, N]`; `sizes` fp32 `[M]`, |x|, or None to sum them here (`tile`); `peaks`
    fp32 `[blocks, T]`; `notes` fp32 `[3, M, T]`. The first program resets the counter of
    `settle`, which follows on the same stream.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(N, TILE)
    if program == 0:
        tl.store(counter_ptr, 0)
    block, tile = block_of(program, M, tiles, BM, GROUP)
    rows_B = block * BM + tl.arange(0, BM)
    columns_J = tile * TILE + tl.arange(0, BN)
    SIZES: tl.constexpr = CHECK and sizes_ptr is None
    acc_BJ, chk_BC, squares_B = accumulate(
        x_ptr, w_ptr, packed_ptr, rows_B, columns_J, tile, M, N, K, weight_strides, geometry,
        fault_ptr, 0, LOAD, CHECK, SIZES, USED, WIDTH, BK, TILE, PRECISION, INJECT,
    )  # fmt: skip
    if INJECT:
        chk_BC = tamper_sum(chk_BC, 4, rows_B, tl.arange(0, 16) + tile * TILE, 0, fault_ptr, 0)
    first_B, second_B, norms_B = sums_of(acc_BJ, TILE)
    if CHECK:
        if SIZES:
            size_B = tl.sqrt(squares_B)
        else:
            size_B = tl.load(sizes_ptr + rows_B, mask=rows_B < M, other=0.0)
        one, two, three = scales_of(scales_ptr, tile, tiles, K)
        scales = (one.to(tl.float32), two.to(tl.float32), three.to(tl.float32))
        checksums = checksums_of(chk_BC, units_ptr, tile)
        ratio_B = ratio_of((first_B, second_B), checksums, norms_B, size_B, scales, limits)
        report(peaks_ptr, notes_ptr, block, rows_B, tile, M, tiles, (first_B, second_B), ratio_B)
    else:
        note(notes_ptr, 0, rows_B, tile, M, tiles, first_B)
        note(notes_ptr, 1, rows_B, tile, M, tiles, second_B)
        note(notes_ptr, 2, rows_B, tile, M, tiles, norms_B)
    value_BJ = finished(
        acc_BJ, addend_ptr, rows_B, columns_J, M, N, addend_strides, alpha, beta
    ).to(out_ptr.dtype.element_ty)
    if INJECT:
        value_BJ = tamper_operand(value_BJ, 5, rows_B, columns_J, fault_ptr, 0)
    inside_BJ = (rows_B[:, None] < M) & (columns_J[None, :] < N)
    tl.store(out_ptr + PLACE(rows_B, columns_J, N, geometry), value_BJ, mask=inside_BJ)


@triton.jit
def thin_kernel(
    x_ptr, packed_ptr, units_ptr, scales_ptr, peaks_ptr, notes_ptr, M, K, tiles, geometry, limits,
    LOAD: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`fused`: the product with the check columns of BT tiles, and the comparison with the sums.

    BM as in the product's kernel, whose notes it reads; plane 2 becomes the ratio where a block
    is suspicious. WIDTH columns a tile (2, or 8 of which 6 count).
    """
    block = tl.program_id(0)
    rows_B = block * BM + tl.arange(0, BM)
    tiles_T = tl.program_id(1) * BT + tl.arange(0, BT)
    at_C = tl.arange(0, BT * WIDTH)
    tile_C = (tl.program_id(1) * BT + at_C // WIDTH).to(tl.int64)
    chk_BC = tl.zeros((BM, BT * WIDTH), tl.float32)
    squares_B = tl.zeros((BM,), tl.float32)
    for step in range(tl.cdiv(K, BK)):
        inner_K = step * BK + tl.arange(0, BK)
        x_BK = LOAD(x_ptr, rows_B, inner_K, M, K, geometry)
        inside_KC = (inner_K[:, None] < K) & (tile_C[None, :] < tiles)
        at_KC = (tile_C[None, :] * K + inner_K[:, None]) * WIDTH + (at_C % WIDTH)[None, :]
        c_KC = tl.load(packed_ptr + at_KC, mask=inside_KC, other=0.0)
        chk_BC = tl.dot(x_BK, c_KC, chk_BC, input_precision=PRECISION)
        wide_BK = x_BK.to(tl.float32)
        squares_B += tl.sum(wide_BK * wide_BK, 1)
    # [B, T, parts, 2]: WIDTH is 2 or 8, and the columns beyond the sixth are zeros.
    chk_BTP2 = tl.reshape(chk_BC, (BM, BT, WIDTH // 2, 2))
    first_BT, second_BT = tl.split(tl.sum(chk_BTP2, 2))
    inside_T = tiles_T < tiles
    units_T = units_ptr + 2 * tiles_T
    first_BT *= tl.load(units_T, mask=inside_T, other=1.0)[None, :]
    second_BT *= tl.load(units_T + 1, mask=inside_T, other=1.0)[None, :]
    root = tl.sqrt(tl.full((), K, tl.float64))
    scales_T = scales_ptr + 3 * tiles_T
    twice_T = scales_T + 3 * tiles
    one_T = tl.minimum(tl.load(scales_T, inside_T, 0.0), tl.load(twice_T, inside_T, 0.0)) / root
    two_T = tl.minimum(
        tl.load(scales_T + 1, inside_T, 0.0), tl.load(twice_T + 1, inside_T, 0.0)
    ) / root  # fmt: skip
    three_T = tl.minimum(
        tl.load(scales_T + 2, inside_T, 0.0), tl.load(twice_T + 2, inside_T, 0.0)
    ) / root  # fmt: skip
    scales = (
        one_T.to(tl.float32)[None, :],
        two_T.to(tl.float32)[None, :],
        three_T.to(tl.float32)[None, :],
    )
    at_BT = notes_ptr + rows_B.to(tl.int64)[:, None] * tiles + tiles_T[None, :]
    plane = tl.full((), M, tl.int64) * tiles
    inside_BT = (rows_B[:, None] < M) & inside_T[None, :]
    sums_1 = tl.load(at_BT, mask=inside_BT, other=0.0)
    sums_2 = tl.load(at_BT + plane, mask=inside_BT, other=0.0)
    norms_BT = tl.load(at_BT + 2 * plane, mask=inside_BT, other=0.0)
    size_B1 = tl.sqrt(squares_B)[:, None]
    ratio_BT = ratio_of((sums_1, sums_2), (first_BT, second_BT), norms_BT, size_B1, scales, limits)
    ratio_BT = tl.where(inside_BT, ratio_BT, 0.0)
    peaks_T = tl.max(ratio_BT, 0)
    tl.store(peaks_ptr + block.to(tl.int64) * tiles + tiles_T, peaks_T, mask=inside_T)
    tl.store(at_BT + 2 * plane, ratio_BT, mask=inside_BT & (peaks_T > 1.0)[None, :])
