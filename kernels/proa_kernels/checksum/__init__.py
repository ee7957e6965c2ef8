"""Checksums of a weight matrix, taken offline: sums over tiles of output columns.

Letters: N outputs, K inner, T tiles of `TILE` outputs (the last may be narrower).
For tile t: `c1[k] = sum_j W[j, k]` and `c2[k] = sum_j W[j, k] v[j]`, j counted in the tile, with
`v = 127, -127, 125, -125, ..., 1, -1` over 128. The second sum sees swaps and +d, -d pairs, and
locates a column: its weights lie as far apart as they can within -1 and 1, and those of neighbours
farthest; the sum of data of one sign stays small, and so does its rounding. Both in fp64.
Stored fp32 where the mathematics is fp32, else split in three bf16, which hold 24 bits of it and
can go through the same matrix unit as bf16 weights (facts: abft D, L; the split of BF16x9).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from proa_kernels.errors import WeightsRefused

TILE = 128
KEY_LENGTH = 32  # hex digits of sha256 in a key and in the names of buffers
FORMAT = "proa-checksum-2"


@dataclass(frozen=True)
class Checksum:
    """`columns`: `[parts, K, 2 T]`, c1 and c2 of tile t at 2t and 2t + 1; their sum over parts
    is the checksum; 1 part of fp32 or 3 of bf16. `scales`: fp64 `[2, T, 3]`, the norms |W_t|_F,
    |c1|, |c2|, twice: the smaller counts, since one that grew would raise the threshold and hide
    faults. `key`: what it was taken of."""

    columns: torch.Tensor
    scales: torch.Tensor
    key: str


def take(weight_NK: torch.Tensor) -> Checksum:
    """The checksum of an fp32, bf16 or fp16 weight, `[N, K]`. Raises WeightsRefused."""
    rows, inner = weight_NK.shape
    sums, scales = [], []
    for start in range(0, rows, TILE):
        tile = weight_NK[start : start + TILE].double()
        both = ramp(tile.shape[0], torch.float64, tile.device) @ tile  # [2, K]
        sums.append(both)
        scales.append(torch.stack([tile.norm(), both[0].norm(), both[1].norm()]))
    exact_K2T = torch.cat(sums).T.contiguous() if sums else weight_NK.new_zeros(inner, 0).double()
    parts = 1 if weight_NK.dtype == torch.float32 else 3
    columns = split(exact_K2T, torch.float32 if parts == 1 else torch.bfloat16, parts)
    if not bool(torch.isfinite(columns).all()) or not bool(torch.isfinite(weight_NK).all()):
        raise WeightsRefused("the weight has NaN or Inf, or sums of it are beyond fp32")
    norms = torch.stack(scales) if scales else weight_NK.new_zeros(0, 3).double()
    return Checksum(columns, torch.stack([norms, norms]), key_of(weight_NK))


def ramp(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two check vectors of a tile, `[2, width]`: ones and v (exact in fp32, bf16, fp16)."""
    places = torch.arange(width, device=device)
    steps = (TILE - 1 - places + places % 2) * (1 - 2 * (places % 2))
    # Scalars, no tensor of them: a copy from the host is illegal within a CUDA graph's capture.
    return torch.stack([torch.ones_like(steps).to(dtype), steps.to(dtype) / TILE])


def place_of(ratio: float) -> int:
    """The j whose v is nearest to `ratio`: where an error lies whose part in the second sum is
    `ratio` of that in the first. Beyond the tile, or negative, where no v is near."""
    return 2 * round((TILE - 1 - abs(ratio) * TILE) / 2) + (ratio < 0.0)


def split(exact: torch.Tensor, dtype: torch.dtype, parts: int) -> torch.Tensor:
    """`[parts, *shape]` of `dtype`, largest first, whose sum is fp64 `exact` rounded late."""
    found = []
    rest = exact
    for _ in range(parts):
        found.append(rest.to(dtype))
        rest = rest - found[-1].double()
    return torch.stack(found)


def joined(columns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[K, 2 T]` of stored `columns`: three bf16 parts fit fp32's 24 bits."""
    return columns[0].to(dtype) if len(columns) == 1 else columns.to(dtype).sum(0)


def key_of(weight_NK: torch.Tensor) -> str:
    """Hash of a weight's values, shape and dtype, and of this checksum's format."""
    digest = hashlib.sha256(FORMAT.encode())
    digest.update(f"{TILE} {weight_NK.dtype} {tuple(weight_NK.shape)}".encode())
    digest.update(_bytes(weight_NK))
    return digest.hexdigest()[:KEY_LENGTH]


def matches(weight_NK: torch.Tensor, key: str) -> bool:
    """Whether the weight still is what the checksum was taken of: tells memory from arithmetic."""
    return key_of(weight_NK) == key


def _bytes(tensor: torch.Tensor) -> Any:
    """A buffer of the values, row by row; no copy where they lie so on the host."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if len(flat) else b""
