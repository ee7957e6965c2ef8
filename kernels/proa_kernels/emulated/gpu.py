"""fp32 products from bf16 products on a GPU, in Triton's language: four kernels, no host waits.

`_scan` finds each row's scale, `_split` writes bf16 parts with the scales folded in (exact after
scaling), `_product` multiplies them smallest band first and promotes every BLOCK_K, `_ieee` redoes
tiles that cannot be split, in fp32, and counts them. Deterministic: no split-K, no float atomics.
Letters: M rows, N columns, K inner, R rows of whichever operand, P parts.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from proa_kernels.emulated import config

_SPECIAL = 1 << 16  # added to the shift of a row that cannot be split
_SCAN_ROWS, _SCAN_INNER = 32, 128
_PAD_ROWS, _PAD_INNER = 256, 128  # parts are padded with zeros: no masks in the main loop
_IEEE_K = 32
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Launch:
    """Blocks of `_product`. Two fp32 accumulators live in registers: 128 x 256 with 8 warps spills
    184 bytes of the one that is touched only at a promotion (ptxas for sm_90)."""

    block_m: int = 128
    block_n: int = 256
    warps: int = 8
    stages: int = 3
    group: int = 8  # rows of tiles that run together, for the L2 cache


# What `benchmarks/abft_gpu.py` tries.
LAUNCHES = (Launch(), Launch(stages=4), Launch(block_n=128), Launch(block_n=128, stages=4),
            Launch(block_n=128, stages=4, group=16))  # fmt: skip
_WIDE_TILES_MIN = 132  # a wide tile for each multiprocessor of an H200, else narrow ones


def launch_for(rows: int, columns: int) -> Launch:
    """Blocks for a shape."""
    tiles = triton.cdiv(rows, 128) * triton.cdiv(columns, 256)
    return Launch() if tiles >= _WIDE_TILES_MIN else Launch(block_n=128, stages=4)


@triton.jit
def _scan(x, shift, rows, inner, row_stride, inner_stride,
          TOP: tl.constexpr, BOTTOM: tl.constexpr, SHIFT_MAX: tl.constexpr, SPECIAL: tl.constexpr,
          BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    at_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    at_K = tl.arange(0, BLOCK_K)
    top_RK = tl.zeros((BLOCK_R, BLOCK_K), tl.int32)
    least_RK = tl.full((BLOCK_R, BLOCK_K), 0x7FFFFFFF, tl.int32)
    for start in range(0, inner, BLOCK_K):
        here_K = start + at_K
        place = (
            x
            + at_R.to(tl.int64)[:, None] * row_stride
            + here_K.to(tl.int64)[None, :] * inner_stride
        )
        inside = (at_R < rows)[:, None] & (here_K < inner)[None, :]
        bits = tl.load(place, mask=inside, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        top_RK = tl.maximum(top_RK, bits)
        least_RK = tl.minimum(least_RK, tl.where(bits == 0, 0x7FFFFFFF, bits))
    top = tl.max(top_RK, 1) >> 23
    least = tl.min(least_RK, 1) >> 23
    exponent = tl.where(least == 0, -149, least - 127)
    found = tl.minimum(TOP + 127 - top, SHIFT_MAX)
    special = (top == 255) | (exponent + found < BOTTOM)
    empty = (top == 0) & (least == 255)
    found = tl.where(empty | (top == 255), 0, found) + tl.where(special, SPECIAL, 0)
    tl.store(shift + at_R, found, mask=at_R < rows)


@triton.jit
def _power(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(x):
    """bf16 of fp32, to nearest even, by its bits: the CPU interpreter's own cast truncates."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _split(x, shift, parts, rows, inner, row_stride, inner_stride, padded_rows, padded_inner,
           SPECIAL: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr,
           BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    at_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    at_K = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (at_R < rows)[:, None] & (at_K < inner)[None, :]
    place = x + at_R.to(tl.int64)[:, None] * row_stride + at_K.to(tl.int64)[None, :] * inner_stride
    moved = tl.load(shift + at_R, mask=at_R < rows, other=0)
    special = moved >= SPECIAL // 2
    rest = tl.load(place, mask=inside & ~special[:, None], other=0.0)
    rest = rest * _power(tl.where(special, 0, moved))[:, None]
    whole = padded_rows.to(tl.int64) * padded_inner
    target = parts + at_R.to(tl.int64)[:, None] * padded_inner + at_K[None, :]
    scale = 1.0
    for part in tl.static_range(COUNT):
        found = _nearest(rest)
        rest = (rest - found.to(tl.float32)) * (1 << STEP)
        tl.store(target + part * whole, (found.to(tl.float32) * scale).to(tl.bfloat16))
        scale = scale / (1 << STEP)


@triton.jit
def _tile(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Tile of this program: GROUP rows of tiles before the next column, for the cache."""
    tiles_M, tiles_N = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    first = program // (GROUP * tiles_N) * GROUP
    height = tl.minimum(tiles_M - first, GROUP)
    inside = program % (GROUP * tiles_N)
    return first + inside % height, inside // height


@triton.jit
def _accumulate(a, b, at_M, at_N, padded_rows, padded_columns, padded_inner,
                PRODUCTS: tl.constexpr, PARTS_A: tl.constexpr, PARTS_B: tl.constexpr,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                UPCAST: tl.constexpr):  # fmt: skip
    """One flat loop over (inner block, product): the only form whose products Triton leaves in
    flight from one step to the next. PARTS: two bits for each product, the part it takes."""
    at_K = tl.arange(0, BLOCK_K)
    a_MK = a + at_M.to(tl.int64)[:, None] * padded_inner + at_K[None, :]
    b_KN = b + at_N.to(tl.int64)[None, :] * padded_inner + at_K[:, None]
    whole_a = padded_rows.to(tl.int64) * padded_inner
    whole_b = padded_columns.to(tl.int64) * padded_inner
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(padded_inner // BLOCK_K * PRODUCTS):
        start = step // PRODUCTS * BLOCK_K
        product = step % PRODUCTS
        part_MK = tl.load(a_MK + (((PARTS_A >> (2 * product)) & 3) * whole_a + start))
        part_KN = tl.load(b_KN + (((PARTS_B >> (2 * product)) & 3) * whole_b + start))
        # Triton's CPU interpreter multiplies the bit patterns of bf16 (triton#11584).
        if UPCAST:
            wide_MK, wide_KN = part_MK.to(tl.float32), part_KN.to(tl.float32)
            sum_MN = tl.dot(wide_MK, wide_KN, sum_MN, input_precision="ieee")
        else:
            sum_MN = tl.dot(part_MK, part_KN, sum_MN)
        if product == PRODUCTS - 1:
            acc_MN += sum_MN
            sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    return acc_MN


@triton.jit
def _product(a, b, shift_a, shift_b, out, rows, columns, padded_rows, padded_columns,
             padded_inner, out_stride,
             PRODUCTS: tl.constexpr, PARTS_A: tl.constexpr, PARTS_B: tl.constexpr,
             SPECIAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    tile_M, tile_N = _tile(rows, columns, BLOCK_M, BLOCK_N, GROUP)
    at_M = tile_M * BLOCK_M + tl.arange(0, BLOCK_M)
    at_N = tile_N * BLOCK_N + tl.arange(0, BLOCK_N)
    acc_MN = _accumulate(a, b, at_M, at_N, padded_rows, padded_columns, padded_inner, PRODUCTS,
                         PARTS_A, PARTS_B, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST)  # fmt: skip
    # Special rows and columns: whatever stands here, `_ieee` writes their tiles anew.
    moved_M = tl.load(shift_a + at_M, mask=at_M < rows, other=0)
    moved_N = tl.load(shift_b + at_N, mask=at_N < columns, other=0)
    moved_M = tl.where(moved_M >= SPECIAL // 2, 0, moved_M)
    moved_N = tl.where(moved_N >= SPECIAL // 2, 0, moved_N)
    total_MN = -(moved_M[:, None] + moved_N[None, :])
    half_MN = total_MN >> 1
    acc_MN = acc_MN * _power(half_MN) * _power(total_MN - half_MN)
    place = out + at_M.to(tl.int64)[:, None] * out_stride + at_N[None, :]
    tl.store(place, acc_MN, mask=(at_M < rows)[:, None] & (at_N < columns)[None, :])


@triton.jit
def _ieee(a, b, shift_a, shift_b, out, fallbacks, rows, columns, inner,
          a_row, a_inner, b_inner, b_column, out_stride,
          SPECIAL: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    tile_M, tile_N = _tile(rows, columns, BLOCK, BLOCK, 8)
    at_M = tile_M * BLOCK + tl.arange(0, BLOCK)
    at_N = tile_N * BLOCK + tl.arange(0, BLOCK)
    moved_M = tl.load(shift_a + at_M, mask=at_M < rows, other=0)
    moved_N = tl.load(shift_b + at_N, mask=at_N < columns, other=0)
    if tl.maximum(tl.max(moved_M, 0), tl.max(moved_N, 0)) < SPECIAL // 2:
        return
    tl.atomic_add(fallbacks, 1)
    acc_MN = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, inner, BLOCK_K):
        at_K = start + tl.arange(0, BLOCK_K)
        a_MK = a + at_M.to(tl.int64)[:, None] * a_row + at_K.to(tl.int64)[None, :] * a_inner
        b_KN = b + at_K.to(tl.int64)[:, None] * b_inner + at_N.to(tl.int64)[None, :] * b_column
        part_MK = tl.load(a_MK, mask=(at_M < rows)[:, None] & (at_K < inner)[None, :], other=0.0)
        part_KN = tl.load(b_KN, mask=(at_K < inner)[:, None] & (at_N < columns)[None, :], other=0.0)
        acc_MN = tl.dot(part_MK, part_KN, acc_MN, input_precision="ieee")
    place = out + at_M.to(tl.int64)[:, None] * out_stride + at_N[None, :]
    tl.store(place, acc_MN, mask=(at_M < rows)[:, None] & (at_N < columns)[None, :])


def emulated_product(
    a_MK: torch.Tensor, b_KN: torch.Tensor, products: int, *, launch: Launch | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.emulated_product`, on a GPU. The count stays on the device."""
    rows, inner = a_MK.shape
    columns = b_KN.shape[1]
    out_MN = a_MK.new_empty(rows, columns)
    fallbacks = torch.zeros(1, dtype=torch.int32, device=a_MK.device)
    if not rows or not columns:
        return out_MN, fallbacks
    a_PRK, shift_M = prepared(a_MK, products)
    b_PRK, shift_N = prepared(b_KN.T, products)
    one = launch or launch_for(rows, columns)
    _product[(triton.cdiv(rows, one.block_m) * triton.cdiv(columns, one.block_n),)](
        a_PRK, b_PRK, shift_M, shift_N, out_MN, rows, columns, a_PRK.shape[1], b_PRK.shape[1],
        a_PRK.shape[2], columns,
        PRODUCTS=products, PARTS_A=_code(products, 0), PARTS_B=_code(products, 1),
        SPECIAL=_SPECIAL, BLOCK_M=one.block_m, BLOCK_N=one.block_n, BLOCK_K=config.PROMOTE,
        GROUP=one.group, UPCAST=INTERPRETED, num_warps=one.warps, num_stages=one.stages,
    )  # fmt: skip
    tile = config.TILE
    _ieee[(triton.cdiv(rows, tile) * triton.cdiv(columns, tile),)](
        a_MK, b_KN, shift_M, shift_N, out_MN, fallbacks, rows, columns, inner, *a_MK.stride(),
        *b_KN.stride(), columns, SPECIAL=_SPECIAL, BLOCK=tile, BLOCK_K=_IEEE_K,
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return out_MN, fallbacks


def _code(products: int, side: int) -> int:
    """Two bits for each product: which part of A (side 0) or B (side 1) it takes."""
    return sum(pair[side] << (2 * at) for at, pair in enumerate(config.ORDER[products]))


def prepared(x_RK: torch.Tensor, products: int) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 parts `[P, R padded, K padded]` with their weights folded in, and int32 shifts `[R]`."""
    rows, inner = x_RK.shape
    padded = (_padded(rows, _PAD_ROWS), _padded(inner, _PAD_INNER))
    shift = torch.empty(rows, dtype=torch.int32, device=x_RK.device)
    parts = torch.empty((config.parts(products), *padded), dtype=torch.bfloat16, device=x_RK.device)
    _scan[(triton.cdiv(rows, _SCAN_ROWS),)](
        x_RK, shift, rows, inner, *x_RK.stride(), TOP=config.TOP, BOTTOM=config.BOTTOM,
        SHIFT_MAX=config.SHIFT_MAX, SPECIAL=_SPECIAL, BLOCK_R=_SCAN_ROWS, BLOCK_K=_SCAN_INNER,
    )  # fmt: skip
    grid = (padded[0] // _SCAN_ROWS, padded[1] // _SCAN_INNER)
    _split[grid](
        x_RK, shift, parts, rows, inner, *x_RK.stride(), *padded,
        SPECIAL=_SPECIAL, STEP=config.STEP, COUNT=len(parts),
        BLOCK_R=_SCAN_ROWS, BLOCK_K=_SCAN_INNER,
    )  # fmt: skip
    return parts, shift


def _padded(size: int, block: int) -> int:
    return max(1, -(-size // block)) * block
