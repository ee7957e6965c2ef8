"""Faults within the GPU kernels, for campaigns: read from a device tensor, so nothing recompiles.

int32 `[6]`: site, row, column, step, mask, stays. Production kernels are compiled with INJECT
False and without the tensor: nothing of this is in them (a test compares them with a source
that never had it).

| site | row, column | |
|---|---|---|
| 0 | | none |
| 1 accumulator | of the result | before the dot of block `step` of K; after all at their number |
| 2 left operand | row, place in K | as loaded, by one program of that row, for one product |
| 3 weight | place in K, column | as loaded |
| 4 checksum | row, TILE t + column of the 16 of tile t | `tile` alone |
| 5 result | of the result | after the rounding: not covered by the checks |

`mask` is what the bits are XORed with. `stays` 1: the recomputation meets the same fault.
"""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

SITES = ("none", "accumulator", "input", "weight", "checksum", "output")


@triton.jit
def _hit(site, rows_B, columns_J, fault_ptr, attempt):
    active = (tl.load(fault_ptr) == site) & ((attempt == 0) | (tl.load(fault_ptr + 5) == 1))
    here_BJ = (rows_B[:, None] == tl.load(fault_ptr + 1)) & (
        columns_J[None, :] == tl.load(fault_ptr + 2)
    )
    return here_BJ & active


@triton.jit
def tamper_sum(acc_BJ, site, rows_B, columns_J, step, fault_ptr, attempt):
    """fp32 sums, at one step of the loop over K."""
    hit_BJ = _hit(site, rows_B, columns_J, fault_ptr, attempt) & (tl.load(fault_ptr + 3) == step)
    flipped_BJ = acc_BJ.to(tl.int32, bitcast=True) ^ tl.load(fault_ptr + 4)
    return tl.where(hit_BJ, flipped_BJ.to(tl.float32, bitcast=True), acc_BJ)


@triton.jit
def tamper_operand(value_BJ, site, rows_B, columns_J, fault_ptr, attempt):
    """A block as loaded, or as stored, of fp32, bf16 or fp16."""
    hit_BJ = _hit(site, rows_B, columns_J, fault_ptr, attempt)
    mask = tl.load(fault_ptr + 4)
    if value_BJ.dtype.primitive_bitwidth == 32:
        flipped_BJ = value_BJ.to(tl.int32, bitcast=True) ^ mask
    else:
        flipped_BJ = value_BJ.to(tl.int16, bitcast=True) ^ mask.to(tl.int16)
    return tl.where(hit_BJ, flipped_BJ.to(value_BJ.dtype, bitcast=True), value_BJ)
