"""What the limit of the row check hides: faults whose sums move by too little to tell.

Letters: F rows, N outputs, K inner, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proa_kernels.checksum import TILE, ramp
from proa_kernels.rowcheck.screen import limits

# Clean products use about half of the limit: what moves a sum by more than the limit and that half
# is found wherever the sum was before; what moves it less may be taken back by rounding.
CLEAR = 1.5


@dataclass(frozen=True)
class _Tile:
    """`sums` `[2, K]` of a tile's weights and their norms `scales` `[1, 3]`, fp64."""

    span: slice
    sums: torch.Tensor
    scales: torch.Tensor


class RowLimit:
    """The limit T2 of the rows of one product, in fp64, as the second look takes it."""

    def __init__(self, x_MK: torch.Tensor, weight_NK: torch.Tensor) -> None:
        self._x_MK = x_MK.double()
        self._size_M = torch.linalg.vector_norm(self._x_MK, dim=1)
        self._tiles = [_tile(weight_NK, start) for start in range(0, len(weight_NK), TILE)]

    def hides(self, clean_MN: torch.Tensor, faulty_MN: torch.Tensor) -> torch.Tensor:
        """Whether a row's faults move both sums by no more than CLEAR limits, in every tile. NaN
        and Inf are never hidden."""
        hidden_M = torch.ones(len(clean_MN), dtype=torch.bool)
        for tile in self._tiles:
            clean, faulty = clean_MN[:, tile.span].double(), faulty_MN[:, tile.span].double()
            vectors_2J = ramp(clean.shape[1], torch.float64, clean.device)
            moved_M2 = ((faulty - clean) @ vectors_2J.T).abs()
            checks_M12 = (self._x_MK @ tile.sums.T).unsqueeze(1)
            norms_M1 = torch.linalg.vector_norm(faulty, dim=1, keepdim=True)
            limit_M2 = limits(norms_M1, self._size_M, checks_M12, tile.scales, self._x_MK.shape[1])[
                :, 0
            ]
            below_M2 = (moved_M2 <= CLEAR * limit_M2) & torch.isfinite(limit_M2)
            hidden_M &= below_M2.all(1)
        return hidden_M


def _tile(weight_NK: torch.Tensor, start: int) -> _Tile:
    rows = weight_NK[start : start + TILE].double()
    sums_2K = ramp(len(rows), torch.float64, rows.device) @ rows
    scales = torch.stack([rows.norm(), *torch.linalg.vector_norm(sums_2K, dim=1)])
    return _Tile(slice(start, start + len(rows)), sums_2K, scales[None])
