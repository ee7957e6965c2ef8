"""What the kernels of one checked call hand to each other. Allocated per call, never zeroed.

All of it comes from torch's caching allocator (from a CUDA graph's own pool within a capture), on
the stream of the call, so that it may be freed when the call returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proa_kernels.gpu.launch import SETTLE_PROGRAMS_MAX
from proa_kernels.verdict import WIDTH


@dataclass(frozen=True)
class Workspace:
    """`peaks` fp32 `[blocks, T]`, each block's worst ratio; `notes` fp32 `[3, M, T]`, see
    `checks.note`; `parts` fp64 `[programs, 8]` and `counter` of `settle`; `verdict` fp64 `[8]`."""

    peaks: torch.Tensor
    notes: torch.Tensor
    parts: torch.Tensor
    counter: torch.Tensor
    verdict: torch.Tensor

    @classmethod
    def of(cls, rows: int, tiles: int, block_m: int, device: torch.device) -> Workspace:
        blocks = -(-rows // block_m)
        programs = max(1, min(blocks * tiles, SETTLE_PROGRAMS_MAX))
        return cls(
            peaks=torch.empty(blocks * tiles, dtype=torch.float32, device=device),
            notes=torch.empty((3, rows, tiles), dtype=torch.float32, device=device),
            parts=torch.empty((programs, 8), dtype=torch.float64, device=device),
            counter=torch.empty(1, dtype=torch.int32, device=device),
            verdict=torch.empty(WIDTH, dtype=torch.float64, device=device),
        )
