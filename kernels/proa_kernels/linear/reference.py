"""The checked product: definition of `proa::checked_linear`, in plain torch for any device.

Letters: M rows, N outputs, K inner. Deterministic where torch's matrix product of one shape is.
The clean path adds a thin product, one of the results with the ramp, and the rows' norms. Source:
one-sided ABFT (Huang, Abraham 1984; SC'21 "Arithmetic-intensity-guided fault tolerance"), with the
weights' side taken offline so that weights are covered too.
"""

from __future__ import annotations

import torch

from proa_kernels.checksum import joined
from proa_kernels.rowcheck import Product, Tamper, Tiling, check_rows

ROWS_MANY = 64


def checked_product(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    correct: bool,
    bias_N: torch.Tensor | None = None,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 accumulators `x @ weight.T (+ bias)` `[M, N]` and their verdict, float64 `[8]`.

    `x`, `weight`: one of fp32, bf16, fp16; `columns`, `scales`: the weight's checksum. With
    `correct`, faulty tiles are replaced by those of a second product that passes.
    """
    return check_rows(Matrix(x_MK, weight_NK, columns, scales, bias_N, tamper), correct=correct)


class Matrix(Product):
    """A product of matrices."""

    def __init__(
        self,
        x_MK: torch.Tensor,
        weight_NK: torch.Tensor,
        columns: torch.Tensor,
        scales: torch.Tensor,
        bias_N: torch.Tensor | None = None,
        tamper: Tamper | None = None,
    ) -> None:
        self._x_MK, self._weight_NK = x_MK.float(), weight_NK.float()
        self._columns, self._tamper = columns, tamper
        self.tiling = Tiling(1, weight_NK.shape[0])
        self.inner = x_MK.shape[1]
        self.stored = scales
        self.bias = None if bias_N is None else bias_N.float()

    def prepare(self) -> None:
        columns_KT = joined(self._columns, torch.float32)
        # For many rows this way round is up to twice as fast, for few it is slower.
        many = len(self._x_MK) >= ROWS_MANY
        checks_MT = (columns_KT.T @ self._x_MK.T).T if many else self._x_MK @ columns_KT
        checks_MT2 = checks_MT.unflatten(1, (self.tiling.count, 2))  # type: ignore[no-untyped-call]
        self._checks: torch.Tensor = checks_MT2.unsqueeze(3)
        self._squares: torch.Tensor = torch.linalg.vector_norm(self._x_MK, dim=1).square_()

    def compute(self, attempt: int) -> torch.Tensor:
        acc_MN = torch.nn.functional.linear(self._x_MK, self._weight_NK, self.bias)
        if self._tamper is not None:
            self._tamper(acc_MN, attempt)
        return acc_MN

    def rows(self, acc: torch.Tensor) -> torch.Tensor:
        return acc.unsqueeze(2)

    def checksums(self) -> torch.Tensor:
        return self._checks

    def squares(self) -> torch.Tensor:
        return self._squares[:, None, None]

    def inputs(self, tile: int, rows_R: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self._x_MK[rows_R].double()

    def weights(self, tile: int) -> torch.Tensor:
        return self._weight_NK[self.tiling.span(tile)].double()

    def columns(self, tile: int) -> torch.Tensor:
        return joined(self._columns[:, :, 2 * tile : 2 * tile + 2], torch.float64)


__all__ = ["Matrix", "Tamper", "checked_product"]
