"""The checked product of two computed matrices: definition of `proa::checked_bmm`, in plain torch.

Letters: B sheets (matrices of a batch), M rows, N outputs, K inner; R = B M, T tiles.
Sheet by sheet it is the checked linear product, but no operand is a constant: the checksum of the
right one is taken in the call, in fp32, and anew in fp64 where something is suspicious. So an
operand that is wrong when the call begins, or becomes so and stays so, is not seen. The sums of
the right operand cost about 4 N K beside 2 M N K of the product: dear with few rows in a sheet.
"""

from __future__ import annotations

import math

import torch

from proa_kernels import verdict
from proa_kernels.checksum import TILE, ramp
from proa_kernels.linear.reference import Matrix
from proa_kernels.rowcheck import Check, Tamper, Tiling, config
from proa_kernels.rowcheck.screen import limits, tile_squares, tile_sums

# What the rounding of 128 fp32 sums adds to the limit, in units of the checksum: coherent data
# with few inner products needs it (docs/abft.md).
FRESH = 4.0 * config.UNIT


def checked_product(
    x_BMK: torch.Tensor,
    y_BKN: torch.Tensor,
    *,
    correct: bool,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 accumulators `x @ y` `[B, M, N]` and their verdict, float64 `[8]`.

    `x`, `y`: fp32, bf16 or fp16, of any strides. Row `b M + m` of the verdict is row m of sheet b.
    With `correct`, faulty tiles are replaced by those of a second product that passes.
    """
    return _Batch(x_BMK.float(), y_BKN.float(), correct, tamper).run()


class _Batch:
    """One batched product."""

    def __init__(
        self, x_BMK: torch.Tensor, y_BKN: torch.Tensor, correct: bool, tamper: Tamper | None
    ) -> None:
        self.x_BMK, self.y_BKN = x_BMK, y_BKN
        self.correct, self.tamper = correct, tamper
        self._again: torch.Tensor | None = None

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        acc_BMN = self.product(0)
        if not acc_BMN.numel() or not self.x_BMK.shape[2]:
            return acc_BMN, verdict.nothing(acc_BMN.device)
        ratio_RT = self._screen(acc_BMN)
        suspect_RT = ~(ratio_RT <= 1.0)
        values: list[float] = [ratio_RT.numel(), 0, 0, 0, 0.0, -1, -1, -1]
        if bool(suspect_RT.any()):
            ratio_RT = torch.where(suspect_RT, 0.0, ratio_RT).double()
            values[1:4], values[6:] = self._settle(acc_BMN, suspect_RT, ratio_RT)
        values[4] = float(ratio_RT.max())
        return acc_BMN, torch.tensor(values, dtype=torch.float64, device=acc_BMN.device)

    def product(self, attempt: int) -> torch.Tensor:
        acc_BMN = self.x_BMK @ self.y_BKN
        if self.tamper is not None:
            self.tamper(acc_BMN.flatten(0, 1), attempt)
        return acc_BMN

    def again(self, sheet: int) -> torch.Tensor:
        """A sheet of the second product, which is made once."""
        self._again = self.product(1) if self._again is None else self._again
        return self._again[sheet]

    def _screen(self, acc_BMN: torch.Tensor) -> torch.Tensor:
        """Worst residual over limit of each check, in fp32; NaN where something is no number."""
        rows, inner = self.x_BMK.shape[1:]
        columns_B2TK, scales_BT3 = _sums(self.y_BKN)
        # Inner products lie along memory this way round: several times faster than x @ columns.
        check_R2T = (columns_B2TK @ self.x_BMK.mT).mT.flatten(0, 1)
        check_RT2 = check_R2T.view(-1, scales_BT3.shape[1], 2)
        acc_RN1, tiling = acc_BMN.flatten(0, 1).unsqueeze(2), Tiling(1, acc_BMN.shape[2])
        residual_RT2 = (tile_sums(acc_RN1, tiling).squeeze(3) - check_RT2).abs_()
        scales_RT3 = scales_BT3[:, None].expand(-1, rows, -1, -1).flatten(0, 1)
        size_R = torch.linalg.vector_norm(self.x_BMK, dim=2).flatten()

        def ratio(norms_RT: torch.Tensor) -> torch.Tensor:
            limit_RT2 = limits(norms_RT, size_R, check_RT2, scales_RT3, inner)
            limit_RT2 += FRESH * check_RT2.abs()
            # A limit of Inf passes all: 0 Inf is NaN, and so it fails.
            return torch.amax(residual_RT2 / limit_RT2 + 0.0 * limit_RT2, 2)

        # As in `rowcheck.screen`: what passes with |check| / sqrt TILE, about a lower bound of |C|,
        # needs no pass for |C|.
        sieved_RT = ratio(check_RT2[..., 0].abs() / math.sqrt(TILE))
        if float(sieved_RT.max()) <= 1.0:
            return sieved_RT
        return ratio(tile_squares(acc_RN1, tiling).squeeze(2).sqrt_())

    def _settle(
        self, acc_BMN: torch.Tensor, suspect_RT: torch.Tensor, ratio_RT: torch.Tensor
    ) -> tuple[list[float], list[float]]:
        """The counts, and row and column of the worst alarm."""
        sheets, rows = acc_BMN.shape[:2]
        suspect_BMT1, ratio_BMT1 = (one.view(sheets, rows, -1, 1) for one in (suspect_RT, ratio_RT))
        counts, worst = [0, 0, 0], (-1.0, -1, -1)
        for sheet in suspect_BMT1.flatten(1).any(1).nonzero().flatten().tolist():
            check = Check(_Sheet(self, sheet), correct=self.correct)
            check.settle(acc_BMN[sheet].unsqueeze(2), suspect_BMT1[sheet], ratio_BMT1[sheet])
            counts = [one + more for one, more in zip(counts, check.counts, strict=True)]
            if check.worst[0] > worst[0]:
                worst = (check.worst[0], sheet * rows + check.worst[1], check.worst[2])
        return [float(one) for one in counts], [float(one) for one in worst[1:]]


class _Sheet(Matrix):
    """A suspicious sheet, as a product of matrices with its checksum taken in fp64."""

    def __init__(self, batch: _Batch, sheet: int) -> None:
        y_KN = batch.y_BKN[sheet]
        columns_12TK, scales_1T3 = _sums(y_KN.double()[None])
        super().__init__(batch.x_BMK[sheet], y_KN.T, columns_12TK.mT, scales_1T3)
        self._batch, self._sheet = batch, sheet

    def compute(self, attempt: int) -> torch.Tensor:
        assert attempt == 1
        return self._batch.again(self._sheet)


def _sums(y_BKN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The checksum `[B, 2 T, K]` of the right operand, and its norms |Y_t|_F, |c1|, |c2|
    `[B, T, 3]`, in its dtype."""
    columns, norms = [], []
    for start, count, width in Tiling(1, y_BKN.shape[2]).runs():
        part_BJK = y_BKN.mT[:, start : start + count * width]
        tiles_BTJK = part_BJK.view(len(part_BJK), count, width, part_BJK.shape[2])
        ramp_2J = ramp(width, y_BKN.dtype, y_BKN.device)
        columns.append((ramp_2J @ tiles_BTJK).flatten(1, 2))
        norms.append(torch.linalg.vector_norm(tiles_BTJK, dim=(2, 3)))
    columns_B2TK = torch.cat(columns, 1)
    sizes_BT2 = torch.linalg.vector_norm(columns_B2TK, dim=2).view(len(y_BKN), -1, 2)
    return columns_B2TK, torch.cat([torch.cat(norms, 1)[..., None], sizes_BT2], 2)
