"""Settling suspicions on the device, and the verdict: always launched, at once done when clean.

As `linear.reference` does: a suspicious tile is computed again, by the same code in the same
order. What differs from the first result, as stored or in its sums, is a fault. What repeats is
rounding if fp64 says so: within T2, or each element within Higham's bound of the exact sum while
the exact sums agree with the stored checksums. Letters as in `checks`, `product`.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from proa_kernels.gpu.checks import bits_of, finished, ratio_of, scales_of, step_of, sums_of
from proa_kernels.gpu.product import accumulate


@triton.jit
def _exact_checksums(
    x_ptr, packed_ptr, units_ptr, rows_B, tile, M, K, geometry,
    LOAD: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """fp64 `[B]`: x with the two columns, |x| with their absolute values, and |x|."""
    B: tl.constexpr = rows_B.shape[0]
    first_B, second_B = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
    size_1_B, size_2_B = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
    squares_B = tl.zeros((B,), tl.float64)
    unit_1 = tl.load(units_ptr + 2 * tile).to(tl.float64)
    unit_2 = tl.load(units_ptr + 2 * tile + 1).to(tl.float64)
    for step in range(tl.cdiv(K, BK)):
        inner_K = step * BK + tl.arange(0, BK)
        x_BK = LOAD(x_ptr, rows_B, inner_K, M, K, geometry).to(tl.float64)
        at_K = packed_ptr + (tile.to(tl.int64) * K + inner_K) * WIDTH
        one_K, two_K = tl.zeros((BK,), tl.float64), tl.zeros((BK,), tl.float64)
        for part in tl.static_range(0, USED, 2):
            one_K += tl.load(at_K + part, mask=inner_K < K, other=0.0).to(tl.float64)
            two_K += tl.load(at_K + part + 1, mask=inner_K < K, other=0.0).to(tl.float64)
        first_B += tl.sum(x_BK * one_K[None, :], 1)
        second_B += tl.sum(x_BK * two_K[None, :], 1)
        size_1_B += tl.sum(tl.abs(x_BK) * tl.abs(one_K)[None, :], 1)
        size_2_B += tl.sum(tl.abs(x_BK) * tl.abs(two_K)[None, :], 1)
        squares_B += tl.sum(x_BK * x_BK, 1)
    size_B = tl.sqrt(squares_B)
    return first_B * unit_1, second_B * unit_2, size_1_B * unit_1, size_2_B * unit_2, size_B


@triton.jit
def _proven(
    x_ptr, w_ptr, acc_BJ, rows_B, tile, M, N, K, weight_strides, geometry, checksums, bound, floor,
    LOAD: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows whose every element is within `bound` of the exact product, which fits the checksum.

    Column by column in fp64: slow, and only for what repeats. `checksums`: of `_exact_checksums`.
    """
    B: tl.constexpr = rows_B.shape[0]
    arithmetic_B = tl.full((B,), 1, tl.int32)
    sum_1_B, sum_2_B = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
    bounds_B = tl.zeros((B,), tl.float64)
    at_J = tl.arange(0, acc_BJ.shape[1])
    for j in range(tl.minimum(N - tile * TILE, acc_BJ.shape[1])):
        weight_ptr = w_ptr + (tile * TILE + j).to(tl.int64) * weight_strides[0]
        exact_B, size_B = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
        for step in range(tl.cdiv(K, BK)):
            inner_K = step * BK + tl.arange(0, BK)
            x_BK = LOAD(x_ptr, rows_B, inner_K, M, K, geometry).to(tl.float64)
            at_K = inner_K.to(tl.int64) * weight_strides[1]
            w_K = tl.load(weight_ptr + at_K, mask=inner_K < K, other=0.0).to(tl.float64)
            exact_B += tl.sum(x_BK * w_K[None, :], 1)
            size_B += tl.sum(tl.abs(x_BK) * tl.abs(w_K)[None, :], 1)
        mine_B = tl.sum(tl.where(at_J[None, :] == j, acc_BJ, 0.0), 1).to(tl.float64)
        bound_B = bound * size_B + floor
        arithmetic_B &= (tl.abs(mine_B - exact_B) <= bound_B).to(tl.int32)
        sum_1_B += exact_B
        sum_2_B += exact_B * (step_of(j, TILE) / TILE)
        bounds_B += bound_B
    # 2^-28 of fp32's bound is what the fp64 sums here may be off by; 2^-23: twice fp32's rounding.
    spare_B = floor + bounds_B * 3.725290298461914e-09
    fits_1 = tl.abs(sum_1_B - checksums[0]) <= 1.1920928955078125e-07 * checksums[2] + spare_B
    fits_2 = tl.abs(sum_2_B - checksums[1]) <= 1.1920928955078125e-07 * checksums[3] + spare_B
    return (arithmetic_B == 1) & fits_1 & fits_2


@triton.jit
def _column(stored_BJ, changed_BJ, mine_B, residuals, tile, N, TILE: tl.constexpr):
    """The column of a single wrong element in the row of `mine_B`, else -1: see the reference.

    The one that is no number, the one that a recomputation changes, or by the two residuals.
    """
    J: tl.constexpr = stored_BJ.shape[1]
    at_J = tl.arange(0, J)
    inside_BJ = mine_B[:, None] & (at_J[None, :] < N - tile * TILE)
    wide_BJ = stored_BJ.to(tl.float32)
    odd_BJ = ((tl.abs(wide_BJ) < float("inf")) == 0) & inside_BJ
    changed_BJ = changed_BJ & inside_BJ
    place_BJ = tl.broadcast_to(at_J[None, :], stored_BJ.shape)
    odd = tl.sum(odd_BJ.to(tl.int32))
    changed = tl.sum(changed_BJ.to(tl.int32))
    odd_at = tl.max(tl.where(odd_BJ, place_BJ, -1))
    changed_at = tl.max(tl.where(changed_BJ, place_BJ, -1))
    one = tl.sum(tl.where(mine_B, residuals[0], 0.0), 0)
    two = tl.sum(tl.where(mine_B, residuals[1], 0.0), 0)
    ratio = two / tl.where(one == 0.0, 1.0, one)  # below: as checksum.place_of
    near = (one != 0.0) & (tl.abs(ratio) < 2.0)
    half = tl.floor((TILE - 1 - tl.abs(tl.where(near, ratio, 0.0)) * TILE) / 2.0 + 0.5)
    place = 2 * half.to(tl.int32) + (ratio < 0.0).to(tl.int32)
    inside = near & (place >= 0) & (place < tl.minimum(N - tile * TILE, J))
    found = tl.where(odd == 1, odd_at, tl.where(changed == 1, changed_at, place))
    found = tl.where((odd == 1) | (changed == 1) | inside, found, -1)
    return tl.where(found >= 0, found + tile * TILE, -1)


@triton.jit
def _moved(noted_B, again_B, squares_B):
    """Whether a row's sum is another one: beyond what another order of 128 additions makes of it,
    since two kernels may lay the same accumulators out differently. 2^-21: half of the least T2."""
    size_B = tl.maximum(tl.sqrt(squares_B), tl.abs(again_B))
    near_B = tl.abs(noted_B - again_B) <= 4.76837158203125e-07 * size_B
    # Sums beyond fp32 are Inf, or no number: Inf - Inf. The fp64 sums tell what that means.
    neither_B = (noted_B != noted_B) & (again_B != again_B)
    return (near_B | (noted_B == again_B) | neither_B) == 0


@triton.jit
def _summed(
    rows, ratios, stored_BJ, changed_BJ, residuals, tile, N, CORRECT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Alarms, repaired, cleared, the worst ratio, that of the worst alarm or -1, its row, column.

    `rows`: their numbers, suspicious, alarmed, repaired; `ratios`: before and now, fp64.
    """
    rows_B, suspect_B, alarm_B, repaired_B = rows
    cleared_B = suspect_B & (alarm_B == 0)
    worst = tl.max(tl.where(cleared_B, ratios[1], ratios[0]), 0)
    ratio_B = tl.where(alarm_B, ratios[0], -1.0)
    top = tl.max(ratio_B, 0)
    row = tl.min(tl.where((ratio_B == top) & alarm_B, rows_B, 2147483647), 0)
    column = _column(stored_BJ, changed_BJ, rows_B == row, residuals, tile, N, TILE)
    repaired = tl.sum(repaired_B.to(tl.int32), 0) if CORRECT else 0
    alarms, cleared = tl.sum(alarm_B.to(tl.int32), 0), tl.sum(cleared_B.to(tl.int32), 0)
    return alarms, repaired, cleared, worst, top, row, column


@triton.jit
def _settle_block(
    x_ptr, w_ptr, packed_ptr, units_ptr, scales_ptr, addend_ptr, out_ptr, notes_ptr, fault_ptr,
    block, tile, M, N, K, weight_strides, addend_strides, geometry, limits, bound, alpha, beta,
    LOAD: tl.constexpr, PLACE: tl.constexpr, CORRECT: tl.constexpr, USED: tl.constexpr,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr, INJECT: tl.constexpr,
):  # fmt: skip
    """Decides the suspicious rows of one block, and repairs them; gives what `_summed` does."""
    tiles = tl.cdiv(N, TILE)
    rows_B = block * BM + tl.arange(0, BM)
    columns_J = tile * TILE + tl.arange(0, BN)
    at_B = notes_ptr + rows_B.to(tl.int64) * tiles + tile
    plane = tl.full((), M, tl.int64) * tiles
    inside_B = rows_B < M
    noted_1 = tl.load(at_B, mask=inside_B, other=0.0)
    noted_2 = tl.load(at_B + plane, mask=inside_B, other=0.0)
    before_B = tl.load(at_B + 2 * plane, mask=inside_B, other=0.0)
    suspect_B = (before_B > 1.0) & inside_B

    acc_BJ, _, _ = accumulate(
        x_ptr, w_ptr, packed_ptr, rows_B, columns_J, tile, M, N, K, weight_strides, geometry,
        fault_ptr, 1, LOAD, False, False, USED, WIDTH, BK, TILE, PRECISION, INJECT,
    )  # fmt: skip
    again = sums_of(acc_BJ, TILE)
    again_BJ = finished(
        acc_BJ, addend_ptr, rows_B, columns_J, M, N, addend_strides, alpha, beta
    ).to(out_ptr.dtype.element_ty)
    inside_BJ = inside_B[:, None] & (columns_J[None, :] < N)
    at_BJ = out_ptr + PLACE(rows_B, columns_J, N, geometry)
    stored_BJ = tl.load(at_BJ, mask=inside_BJ, other=0.0)
    changed_BJ = (bits_of(stored_BJ) != bits_of(again_BJ)) & inside_BJ
    differs_B = tl.max(changed_BJ.to(tl.int32), 1) == 1
    differs_B = differs_B | _moved(noted_1, again[0], again[2])
    differs_B = differs_B | _moved(noted_2, again[1], again[2])

    exact = _exact_checksums(
        x_ptr, packed_ptr, units_ptr, rows_B, tile, M, K, geometry, LOAD, USED, WIDTH, BK
    )
    sums = sums_of(acc_BJ.to(tl.float64), TILE)
    scales = scales_of(scales_ptr, tile, tiles, K)
    now_B = ratio_of((sums[0], sums[1]), (exact[0], exact[1]), sums[2], exact[4], scales, limits)
    good_B = now_B <= 1.0
    # Sums of numbers are numbers in fp64; of what is none nothing can be proven.
    numbers_B = tl.abs(sums[0]) + tl.abs(exact[0]) + tl.abs(exact[1]) < float("inf")
    if tl.max((suspect_B & (now_B > 1.0) & numbers_B).to(tl.int32), 0) == 1:
        good_B = good_B | _proven(
            x_ptr, w_ptr, acc_BJ, rows_B, tile, M, N, K, weight_strides, geometry, exact, bound,
            limits[1], LOAD, TILE, BK,
        )  # fmt: skip
    alarm_B = suspect_B & (differs_B | (good_B == 0))
    repaired_B = alarm_B & good_B
    if CORRECT:
        tl.store(at_BJ, again_BJ, mask=inside_BJ & repaired_B[:, None])
    rows = (rows_B, suspect_B, alarm_B, repaired_B)
    ratios = (before_B.to(tl.float64), now_B)
    residuals = (noted_1.to(tl.float64) - exact[0], noted_2.to(tl.float64) - exact[1])
    return _summed(rows, ratios, stored_BJ, changed_BJ, residuals, tile, N, CORRECT, TILE)


@triton.jit
def _conclude(parts_ptr, counter_ptr, verdict_ptr, checks, PROGRAMS: tl.constexpr):
    """The last program to finish adds up all parts `[programs, 8]`, in one order."""
    programs = tl.num_programs(0)
    tl.debug_barrier()  # All of this program's parts are written before it counts itself.
    done = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    if done == programs - 1:
        at_P = tl.arange(0, PROGRAMS)
        here_P = at_P < programs
        parts_P = parts_ptr + 8 * at_P
        for field in tl.static_range(0, 3):  # alarms, repaired, cleared
            count_P = tl.load(parts_P + field, mask=here_P, other=0.0, cache_modifier=".cg")
            tl.store(verdict_ptr + 1 + field, tl.sum(count_P, 0))
        ratio_P = tl.load(parts_P + 3, mask=here_P, other=0.0, cache_modifier=".cg")
        top_P = tl.load(parts_P + 4, mask=here_P, other=-1.0, cache_modifier=".cg")
        order_P = tl.load(parts_P + 7, mask=here_P, other=0.0, cache_modifier=".cg")
        top = tl.max(top_P, 0)
        # Of equal ratios the first tile's first row, as in the reference.
        first = tl.min(tl.where(top_P == top, order_P, float("inf")), 0)
        mine_P = (top_P == top) & (order_P == first) & here_P
        chosen = tl.min(tl.where(mine_P, at_P, PROGRAMS), 0)
        here = parts_ptr + 8 * chosen
        row = tl.load(here + 5, cache_modifier=".cg")
        column = tl.load(here + 6, cache_modifier=".cg")
        tl.store(verdict_ptr, tl.full((), checks, tl.float64))
        tl.store(verdict_ptr + 4, tl.max(ratio_P, 0))
        tl.store(verdict_ptr + 5, tl.full((), -1.0, tl.float64))
        tl.store(verdict_ptr + 6, tl.where(top >= 0.0, row, -1.0))
        tl.store(verdict_ptr + 7, tl.where(top >= 0.0, column, -1.0))


@triton.jit
def settle_kernel(
    x_ptr, w_ptr, packed_ptr, units_ptr, scales_ptr, addend_ptr, out_ptr, peaks_ptr, notes_ptr,
    parts_ptr, counter_ptr, verdict_ptr, fault_ptr, M, N, K, checks, weight_strides,
    addend_strides, geometry, limits, bound, alpha, beta,
    LOAD: tl.constexpr, PLACE: tl.constexpr, CORRECT: tl.constexpr, USED: tl.constexpr,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr, INJECT: tl.constexpr,
):  # fmt: skip
    """Reads all peaks; computes again what is suspicious; writes the verdict, fp64 `[8]`.

    BM, BN, BK, PRECISION and warps as in the product's kernel. `parts`: fp64 `[programs, 8]`;
    PROGRAMS: their number rounded up to a power of 2.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    tiles = tl.cdiv(N, TILE)
    items = tl.cdiv(M, BM) * tiles
    alarms, repaired, cleared = 0, 0, 0
    ratio = tl.full((), 0.0, tl.float64)
    top = tl.full((), -1.0, tl.float64)
    order = tl.full((), 0.0, tl.float64)
    row, column = -1, -1
    for start in range(program, items, programs * 128):
        at_I = start + programs * tl.arange(0, 128)
        peak_I = tl.load(peaks_ptr + at_I, mask=at_I < items, other=0.0)
        ratio = tl.maximum(ratio, tl.max(tl.where(peak_I <= 1.0, peak_I, 0.0), 0))
        if tl.max(peak_I, 0) > 1.0:
            for item in range(start, tl.minimum(start + programs * 128, items), programs):
                if tl.load(peaks_ptr + item) > 1.0:
                    block = tl.full((), item // tiles, tl.int32)
                    tile = tl.full((), item % tiles, tl.int32)
                    found = _settle_block(
                        x_ptr, w_ptr, packed_ptr, units_ptr, scales_ptr, addend_ptr, out_ptr,
                        notes_ptr, fault_ptr, block, tile, M, N, K, weight_strides,
                        addend_strides, geometry, limits, bound, alpha, beta, LOAD, PLACE,
                        CORRECT, USED, WIDTH, BM, BN, BK, TILE, PRECISION, INJECT,
                    )  # fmt: skip
                    alarms += found[0]
                    repaired += found[1]
                    cleared += found[2]
                    ratio = tl.maximum(ratio, found[3])
                    place = tile.to(tl.float64) * M + found[5]
                    better = (found[4] > top) | ((found[4] == top) & (place < order))
                    better = better & (found[4] >= 0.0)
                    top = tl.where(better, found[4], top)
                    order = tl.where(better, place, order)
                    row = tl.where(better, found[5], row)
                    column = tl.where(better, found[6], column)
    part_ptr = parts_ptr + 8 * program
    tl.store(part_ptr, tl.full((), alarms, tl.float64))
    tl.store(part_ptr + 1, tl.full((), repaired, tl.float64))
    tl.store(part_ptr + 2, tl.full((), cleared, tl.float64))
    tl.store(part_ptr + 3, ratio)
    tl.store(part_ptr + 4, top)
    tl.store(part_ptr + 5, tl.full((), row, tl.float64))
    tl.store(part_ptr + 6, tl.full((), column, tl.float64))
    tl.store(part_ptr + 7, order)
    _conclude(parts_ptr, counter_ptr, verdict_ptr, checks, PROGRAMS)
