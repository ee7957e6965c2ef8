"""A weight's checksum as the GPU kernels read it: all columns of a tile side by side.

`packed`: `[T, K, width]` of the operands' dtype, width 2 for fp32 (c1, c2), else 8: c1 and c2 of
each of three parts and two zeros. `units`: fp32 `[T, 2]`, what products with c1 and c2 are
multiplied with: powers of two for fp16, whose range cannot hold sums of weights, else 1.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from proa_kernels.checksum import joined, split
from proa_kernels.errors import KernelError

_HALF_RANGE = 14  # largest exponent of a packed fp16 value: 2 below its maximum


@dataclass(frozen=True)
class Packed:
    """`used` of `width` columns count."""

    values: torch.Tensor
    units: torch.Tensor
    used: int
    version: int

    @property
    def width(self) -> int:
        return self.values.shape[2]


# Of columns, for as long as these live.
_PACKED: MutableMapping[torch.Tensor, dict[torch.dtype, Packed]] = WeakTensorKeyDictionary()


def packed(columns: torch.Tensor, dtype: torch.dtype) -> Packed:
    """Of `[parts, K, 2 T]` `columns`, for operands of `dtype`; made once per tensor and change.

    Raises KernelError when that once is within the capture of a CUDA graph.
    """
    version = 0 if columns.is_inference() else columns._version  # noqa: SLF001 - no public name
    known = _PACKED.setdefault(columns, {})
    if dtype not in known or known[dtype].version != version:
        if columns.is_cuda and torch.cuda.is_current_stream_capturing():
            raise KernelError("call a checked operator once before capturing it in a CUDA graph")
        known[dtype] = _pack(columns, dtype, version)
    return known[dtype]


def _pack(columns: torch.Tensor, dtype: torch.dtype, version: int) -> Packed:
    inner, twice = columns.shape[1:]
    if dtype == torch.float16:
        exact_K2T = joined(columns, torch.float64)
        largest = exact_K2T.abs().amax(0).clamp(min=2.0**-126)
        exponent = torch.frexp(largest).exponent - _HALF_RANGE
        units = torch.ldexp(torch.ones_like(largest), exponent)
        columns = split(exact_K2T / units, torch.float16, 3)
    else:
        columns = columns.to(dtype)  # fp32 has one part, bf16 three: as they are stored
        units = torch.ones(twice, dtype=torch.float64, device=columns.device)
    parts = len(columns)
    tiles = twice // 2
    values = columns.view(parts, inner, tiles, 2).permute(2, 1, 0, 3).reshape(tiles, inner, -1)
    if parts > 1:
        values = torch.nn.functional.pad(values, (0, 8 - 2 * parts))
    return Packed(values.contiguous(), units.float().view(tiles, 2), 2 * parts, version)
