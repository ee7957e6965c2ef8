"""Suspicions are settled: in fp64, and with a second product where that is not enough."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from proa_kernels.checksum import place_of, ramp
from proa_kernels.rowcheck import config
from proa_kernels.rowcheck.product import Product
from proa_kernels.rowcheck.screen import Screen, limits

# Tests and the fault injector alone: changes accumulators in place; the int is the attempt.
Tamper = Callable[[torch.Tensor, int], None]
ROWS_MAX = 1024  # suspicious rows examined at once: bounds the fp64 copies


def check_rows(product: Product, *, correct: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The accumulators of `product` and their verdict, float64 `[8]`. With `correct`, faulty tiles
    are replaced by those of a second product that passes."""
    return Check(product, correct=correct).run()


class Check:
    """One product and what was found so far."""

    def __init__(self, product: Product, *, correct: bool) -> None:
        self.product, self.correct = product, correct
        self.counts = [0, 0, 0]  # alarms, repaired, cleared
        self.worst = (-1.0, -1, -1)  # ratio, row, column of the worst alarm

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.product.prepare()
        acc = self.product.compute(0)
        acc_BNP = self.product.rows(acc)
        batch, _, places = acc_BNP.shape
        checks = batch * places * self.product.tiling.count
        ratio = self._ratio(acc_BNP) if checks else 0.0
        values = [checks, *self.counts, max(ratio, self.worst[0]), -1, *self.worst[1:]]
        return acc, torch.tensor(values, dtype=torch.float64, device=acc.device)

    def _ratio(self, acc_BNP: torch.Tensor) -> float:
        """The worst ratio that is no alarm's; what is suspicious is settled."""
        screen = Screen(self.product, acc_BNP)
        for sieve in (screen.quick, screen.sieve):
            worst = float(sieve().amax())
            if worst <= 1.0:
                return worst
        ratio_BTP = screen.ratio().amax(2)
        suspect_BTP = ~(ratio_BTP <= 1.0)
        if not bool(suspect_BTP.any()):
            return float(ratio_BTP.amax())
        ratio_BTP = torch.where(suspect_BTP, 0.0, ratio_BTP).double()
        self.settle(acc_BNP, suspect_BTP, ratio_BTP)
        return float(ratio_BTP.amax())

    def settle(
        self, acc_BNP: torch.Tensor, suspect_BTP: torch.Tensor, ratio_BTP: torch.Tensor
    ) -> None:
        """Decides each suspicion; ratios are put in, accumulators repaired. `counts` and `worst`
        have what was found."""
        again_BNP: torch.Tensor | None = None
        places = acc_BNP.shape[2]
        for tile in suspect_BTP.any(2).any(0).nonzero().flatten().tolist():
            suspects = suspect_BTP[:, tile].flatten().nonzero().flatten()
            for rows_R in suspects.split(ROWS_MAX):  # type: ignore[no-untyped-call]
                place = _Place(self.product, tile, rows_R, places)
                found = place.residual(acc_BNP)
                ratio_BTP[place.at[0], tile, place.at[1]] = found.ratio_R
                alarm_R = ~(found.ratio_R <= 1.0)
                if bool(alarm_R.any()):
                    if again_BNP is None:
                        again_BNP = self.product.rows(self.product.compute(1))
                    differs_RJ = place.part(acc_BNP) != place.part(again_BNP)
                    good_R = place.accepts(again_BNP)
                    alarm_R &= differs_RJ.any(1) | ~good_R
                    self._record(place, found, alarm_R, good_R, differs_RJ)
                    if self.correct:
                        place.replace(acc_BNP, again_BNP, alarm_R & good_R)
                self.counts[2] += int((~alarm_R).sum())

    def _record(
        self,
        place: _Place,
        found: _Residual,
        alarm_R: torch.Tensor,
        good_R: torch.Tensor,
        differs_RJ: torch.Tensor,
    ) -> None:
        if not bool(alarm_R.any()):
            return
        self.counts[0] += int(alarm_R.sum())
        self.counts[1] += int((alarm_R & good_R).sum()) if self.correct else 0
        at = int(torch.where(alarm_R, found.ratio_R, -1.0).argmax())
        if float(found.ratio_R[at]) > self.worst[0]:
            column = found.column(at, differs_RJ[at])
            self.worst = (float(found.ratio_R[at]), int(place.rows_R[at]), column)


class _Residual:
    """fp64 residuals `[R, 2]` of one tile, their ratio to the limit (Inf where not finite)."""

    def __init__(
        self,
        part_RJ: torch.Tensor,
        residual_R2: torch.Tensor,
        ratio_R: torch.Tensor,
        start: int,
    ) -> None:
        self.part_RJ, self.residual_R2 = part_RJ, residual_R2
        self.ratio_R, self.start = ratio_R, start

    def column(self, at: int, differs_J: torch.Tensor) -> int:
        """The output column of a single wrong element, -1 where it cannot be told.

        What is no number, or the one element that a recomputation changes, is it. A fault that
        stays: its part in the second sum over that in the first is the weight of its place.
        """
        for odd_J in (~torch.isfinite(self.part_RJ[at]), differs_J):
            places = odd_J.nonzero().flatten()
            if len(places) == 1:
                return self.start + int(places[0])
        ones, steps = self.residual_R2[at].tolist()
        ratio = steps / ones if ones else math.nan
        place = place_of(ratio) if abs(ratio) < 2.0 else -1
        return self.start + place if 0 <= place < self.part_RJ.shape[1] else -1


class _Place:
    """Suspicious rows of one tile, and fp64 copies of what is needed to judge them."""

    def __init__(self, product: Product, tile: int, rows_R: torch.Tensor, places: int) -> None:
        self.rows_R = rows_R
        self.at = (rows_R // places, rows_R % places)
        self._span = product.tiling.span(tile)
        self._inner = product.inner
        self._scales = product.scales[tile : tile + 1]
        self._x_RK = product.inputs(tile, rows_R)
        self._columns_K2 = product.columns(tile)
        self._checksum_R2 = self._x_RK @ self._columns_K2
        self._weight_JK = product.weights(tile)
        width = len(self._weight_JK)
        bias_N = product.bias
        self._bias_J = (
            self._weight_JK.new_zeros(width) if bias_N is None else bias_N[self._span].double()
        )
        self._ramp_2J = ramp(width, torch.float64, rows_R.device)

    def part(self, acc_BNP: torch.Tensor) -> torch.Tensor:
        return acc_BNP[self.at[0], self._span, self.at[1]]

    def residual(self, acc_BNP: torch.Tensor) -> _Residual:
        """The screen's formula in fp64, where nothing over- or underflows."""
        part_RJ = self.part(acc_BNP).double()
        residual_R2 = (part_RJ - self._bias_J) @ self._ramp_2J.T - self._checksum_R2
        norms_R1 = torch.linalg.vector_norm(part_RJ, dim=1, keepdim=True)
        norms_R1 = torch.maximum(norms_R1, torch.linalg.vector_norm(self._bias_J))
        size_R = torch.linalg.vector_norm(self._x_RK, dim=1)
        checksum_R12 = self._checksum_R2.unsqueeze(1)
        limit_R2 = limits(norms_R1, size_R, checksum_R12, self._scales, self._inner)[:, 0]
        ratio_R = (residual_R2.abs() / limit_R2).amax(1)
        # Any NaN or Inf on the way, in the threshold too, is a fault and not a comparison.
        finite_R = torch.isfinite(part_RJ).all(1) & torch.isfinite(limit_R2).all(1)
        ratio_R = torch.where(finite_R & torch.isfinite(ratio_R), ratio_R, math.inf)
        return _Residual(part_RJ, residual_R2, ratio_R, self._span.start)

    def accepts(self, acc_BNP: torch.Tensor) -> torch.Tensor:
        """Rows within the limit, or proven to be rounding: each element within the deterministic
        bound of the exact product, and the exact product in agreement with the checksum."""
        found = self.residual(acc_BNP)
        exact_RJ = self._x_RK @ self._weight_JK.T
        bound_RJ = self._x_RK.abs() @ self._weight_JK.abs().T + self._bias_J.abs()
        bound_RJ = config.bound(self._inner + 1) * bound_RJ + config.floor(self._inner)
        arithmetic_R = ((found.part_RJ - exact_RJ - self._bias_J).abs() <= bound_RJ).all(1)
        stored_R2 = 2.0 * config.UNIT * (self._x_RK.abs() @ self._columns_K2.abs())
        # 2^-28 of fp32's bound is what the fp64 sums here may be off by.
        stored_R2 += config.floor(self._inner) + 2.0**-28 * bound_RJ.sum(1, keepdim=True)
        gap_R2 = (exact_RJ @ self._ramp_2J.T - self._checksum_R2).abs()
        # Inf is no agreement: a stored checksum that is one would allow any gap.
        agrees_R = ((gap_R2 <= stored_R2) & torch.isfinite(stored_R2)).all(1)
        return (found.ratio_R <= 1.0) | (arithmetic_R & agrees_R)

    def replace(
        self, acc_BNP: torch.Tensor, again_BNP: torch.Tensor, which_R: torch.Tensor
    ) -> None:
        batch, place = (one[which_R] for one in self.at)
        acc_BNP[batch, self._span, place] = again_BNP[batch, self._span, place]
