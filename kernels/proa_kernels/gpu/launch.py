"""How a product is cut into programs: by shape, from a table of few rows; measured on no GPU yet.

A checked tile has TILE = 128 columns, so BN is 128, or less where the whole result is narrower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from proa_kernels.checksum import TILE

DECODE_ROWS_MAX = 16
SMALL_ROWS_MAX = 64
SETTLE_PROGRAMS_MAX = 128  # enough to read 16,384 peaks in one step


@dataclass(frozen=True)
class Launch:
    """Sizes of a block, the row blocks that share weights in the cache, and what the compiler is
    told. `sum_sizes`: |x| is summed within the product's kernel and not by a launch of its own."""

    block_m: int
    block_n: int
    block_k: int
    group: int
    warps: int
    stages: int
    sum_sizes: bool
    thin_tiles: int  # tiles per program of the thin product (`fused`)


_HALF = {
    "decode": Launch(16, TILE, 128, 1, 4, 4, True, 2),
    "small": Launch(64, TILE, 64, 4, 4, 4, True, 8),
    "large": Launch(128, TILE, 64, 8, 8, 3, False, 8),
}
# fp32 without tensor cores: a thread's multiply-adds are the limit, not the pipeline.
_SINGLE = {
    "decode": Launch(16, TILE, 64, 1, 4, 3, True, 8),
    "small": Launch(64, TILE, 32, 4, 4, 3, True, 16),
    "large": Launch(128, TILE, 16, 8, 8, 3, False, 16),
}


def shape_class(rows: int) -> str:
    """`decode`, `small` or `large`: rows alone decide what a block can be."""
    if rows <= DECODE_ROWS_MAX:
        return "decode"
    return "small" if rows <= SMALL_ROWS_MAX else "large"


def choose(rows: int, outputs: int, dtype: torch.dtype) -> Launch:
    """The table's launch of a product of `rows` by `outputs`."""
    table = _SINGLE if dtype == torch.float32 else _HALF
    found = table[shape_class(rows)]
    narrow = max(16, 1 << (outputs - 1).bit_length())
    return replace(found, block_n=min(found.block_n, narrow))


def candidates(rows: int, outputs: int, dtype: torch.dtype) -> list[Launch]:
    """What a profiler times, the table's choice first. Production never searches."""
    first = choose(rows, outputs, dtype)
    found = [first]
    for block_m in (16, 64, 128):
        if block_m > 16 and block_m >= 4 * rows:
            continue
        for block_k in (first.block_k // 2, first.block_k):
            for stages in (2, 3, 4):
                warps = 8 if block_m == 128 else 4
                one = replace(
                    first, block_m=block_m, block_k=block_k, warps=warps, stages=stages,
                    sum_sizes=block_m < 128,
                )  # fmt: skip
                if one not in found:
                    found.append(one)
    return found
