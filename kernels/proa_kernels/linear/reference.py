"""The checked product: definition of `proa::checked_linear`, in plain torch for any device.

Letters: M rows, N outputs, K inner, T tiles of TILE outputs, R suspicious rows of one tile.
Deterministic where torch's matrix product of one shape is; the clean path adds one thin product,
two sums and a norm. Source: one-sided ABFT (Huang, Abraham 1984; SC'21 "Arithmetic-intensity-guided
fault tolerance"), with the weights' side taken offline so that weights are covered too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from proa_kernels.checksum import TILE, joined, ramp
from proa_kernels.linear import config

# Tests and the fault injector alone: changes accumulators in place; the int is the attempt.
Tamper = Callable[[torch.Tensor, int], None]
ROWS_MAX = 1024  # suspicious rows examined at once: bounds the fp64 copies


def checked_product(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    correct: bool,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 accumulators `x @ weight.T` `[M, N]` and their verdict, float64 `[8]`.

    `x`, `weight`: one of fp32, bf16, fp16; `columns`, `scales`: the weight's checksum. With
    `correct`, faulty tiles are replaced by those of a second product that passes.
    """
    return _Call(x_MK.float(), weight_NK.float(), columns, scales, correct, tamper).run()


class _Call:
    """One product: its operands in fp32, and what was found so far."""

    def __init__(
        self,
        x_MK: torch.Tensor,
        weight_NK: torch.Tensor,
        columns: torch.Tensor,
        scales: torch.Tensor,
        correct: bool,
        tamper: Tamper | None,
    ) -> None:
        self.x_MK, self.weight_NK = x_MK, weight_NK
        self.columns, self.scales_T3 = columns, scales.amin(0)
        self.correct, self.tamper = correct, tamper
        self.inner = x_MK.shape[1]
        self.counts = [0, 0, 0]  # alarms, repaired, cleared
        self.worst = (-1.0, -1, -1)  # ratio, row, column of the worst alarm

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        acc_MN = self._product(0)
        ratio_MT, limit_MT = self._screen(acc_MN)
        checks = ratio_MT.numel()
        if checks and not (float(ratio_MT.max()) <= 1.0 and float(limit_MT.max()) < math.inf):
            suspect_MT = ~((ratio_MT <= 1.0) & (limit_MT < math.inf))
            ratio_MT = torch.where(suspect_MT, 0.0, ratio_MT).double()
            self._settle(acc_MN, suspect_MT, ratio_MT)
        ratio = max(float(ratio_MT.max()), self.worst[0]) if checks else 0.0
        values = [checks, *self.counts, ratio, -1, *self.worst[1:]]
        return acc_MN, torch.tensor(values, dtype=torch.float64, device=acc_MN.device)

    def _product(self, attempt: int) -> torch.Tensor:
        acc_MN = self.x_MK @ self.weight_NK.T
        if self.tamper is not None:
            self.tamper(acc_MN, attempt)
        return acc_MN

    def _screen(self, acc_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Worst residual over limit of each check, and the limit, in fp32: it may overflow."""
        checksum_MT2 = self.x_MK @ joined(self.columns, torch.float32)
        checksum_MT2 = checksum_MT2.view(len(acc_MN), len(self.scales_T3), 2)
        sums, norms = [], []
        for tile_MTJ in _tiles(acc_MN):
            ones_J, steps_J = ramp(tile_MTJ.shape[2], acc_MN.dtype, acc_MN.device)
            sums.append(torch.stack([tile_MTJ @ ones_J, tile_MTJ @ steps_J], dim=-1))
            norms.append(torch.linalg.vector_norm(tile_MTJ, dim=2))
        sums_MT2, norms_MT = torch.cat(sums, 1), torch.cat(norms, 1)
        size_M = torch.linalg.vector_norm(self.x_MK, dim=1)
        limit_MT2 = _limits(norms_MT, size_M, checksum_MT2, self.scales_T3.float(), self.inner)
        ratio_MT2 = (sums_MT2 - checksum_MT2).abs() / limit_MT2
        return ratio_MT2.amax(2), limit_MT2.amax(2)

    def _settle(
        self, acc_MN: torch.Tensor, suspect_MT: torch.Tensor, ratio_MT: torch.Tensor
    ) -> None:
        """Decide every suspicion in fp64, and with a second product where that is not enough."""
        again_MN: torch.Tensor | None = None
        for tile in suspect_MT.any(0).nonzero().flatten().tolist():
            for rows_R in torch.split(suspect_MT[:, tile].nonzero().flatten(), ROWS_MAX):
                place = _Place(self, tile, rows_R)
                found = place.residual(acc_MN)
                ratio_MT[rows_R, tile] = found.ratio_R
                alarm_R = ~(found.ratio_R <= 1.0)
                if bool(alarm_R.any()):
                    again_MN = self._product(1) if again_MN is None else again_MN
                    differs_RJ = place.part(acc_MN) != place.part(again_MN)
                    good_R = place.accepts(again_MN)
                    alarm_R &= differs_RJ.any(1) | ~good_R
                    self._record(place, found, alarm_R, good_R, differs_RJ)
                    if self.correct:
                        place.replace(acc_MN, again_MN, alarm_R & good_R)
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
        stays: its part in the second sum over that in the first is its place in the ramp.
        """
        for odd_J in (~torch.isfinite(self.part_RJ[at]), differs_J):
            places = odd_J.nonzero().flatten()
            if len(places) == 1:
                return self.start + int(places[0])
        ones, steps = self.residual_R2[at].tolist()
        place = steps / ones * TILE - 1.0 if ones else math.nan
        inside = -0.5 <= place < self.part_RJ.shape[1] - 0.5
        return self.start + round(place) if inside else -1


class _Place:
    """Suspicious rows of one tile, and fp64 copies of what is needed to judge them."""

    def __init__(self, call: _Call, tile: int, rows_R: torch.Tensor) -> None:
        self.rows_R = rows_R
        self.start = tile * TILE
        self._inner = call.inner
        self._scales = call.scales_T3[tile : tile + 1]
        self._x_RK = call.x_MK[rows_R].double()
        self._columns_K2 = joined(call.columns[:, :, 2 * tile : 2 * tile + 2], torch.float64)
        self._checksum_R2 = self._x_RK @ self._columns_K2
        self._weight_JK = call.weight_NK[self.start : self.start + TILE].double()
        self._ramp_2J = ramp(len(self._weight_JK), torch.float64, rows_R.device)

    def part(self, acc_MN: torch.Tensor) -> torch.Tensor:
        return acc_MN[self.rows_R, self.start : self.start + TILE]

    def residual(self, acc_MN: torch.Tensor) -> _Residual:
        """The screen's formula in fp64, where nothing over- or underflows."""
        part_RJ = self.part(acc_MN).double()
        residual_R2 = part_RJ @ self._ramp_2J.T - self._checksum_R2
        norms_R1 = torch.linalg.vector_norm(part_RJ, dim=1, keepdim=True)
        size_R = torch.linalg.vector_norm(self._x_RK, dim=1)
        checksum_R12 = self._checksum_R2.unsqueeze(1)
        limit_R2 = _limits(norms_R1, size_R, checksum_R12, self._scales, self._inner)[:, 0]
        ratio_R = (residual_R2.abs() / limit_R2).amax(1)
        # Any NaN or Inf on the way, in the threshold too, is a fault and not a comparison.
        finite_R = torch.isfinite(part_RJ).all(1) & torch.isfinite(limit_R2).all(1)
        ratio_R = torch.where(finite_R & torch.isfinite(ratio_R), ratio_R, math.inf)
        return _Residual(part_RJ, residual_R2, ratio_R, self.start)

    def accepts(self, acc_MN: torch.Tensor) -> torch.Tensor:
        """Rows within the limit, or proven to be rounding: each element within the deterministic
        bound of the exact product, and the exact product in agreement with the checksum."""
        found = self.residual(acc_MN)
        exact_RJ = self._x_RK @ self._weight_JK.T
        bound_RJ = config.bound(self._inner) * (self._x_RK.abs() @ self._weight_JK.abs().T)
        bound_RJ += config.floor(self._inner)
        arithmetic_R = ((found.part_RJ - exact_RJ).abs() <= bound_RJ).all(1)
        stored_R2 = 2.0 * config.UNIT * (self._x_RK.abs() @ self._columns_K2.abs())
        # 2^-28 of fp32's bound is what the fp64 sums here may be off by.
        stored_R2 += config.floor(self._inner) + 2.0**-28 * bound_RJ.sum(1, keepdim=True)
        gap_R2 = (exact_RJ @ self._ramp_2J.T - self._checksum_R2).abs()
        return (found.ratio_R <= 1.0) | (arithmetic_R & (gap_R2 <= stored_R2).all(1))

    def replace(self, acc_MN: torch.Tensor, again_MN: torch.Tensor, which_R: torch.Tensor) -> None:
        rows = self.rows_R[which_R]
        acc_MN[rows, self.start : self.start + TILE] = again_MN[
            rows, self.start : self.start + TILE
        ]


def _tiles(acc_MN: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views `[M, T, J]` of the accumulators: the full tiles, then the narrower last one."""
    full = acc_MN.shape[1] // TILE * TILE
    if full:
        yield acc_MN[:, :full].view(len(acc_MN), full // TILE, TILE)
    if full < acc_MN.shape[1]:
        yield acc_MN[:, full:].unsqueeze(1)


def _limits(
    norms_MT: torch.Tensor,
    size_M: torch.Tensor,
    checksum_MT2: torch.Tensor,
    scales_T3: torch.Tensor,
    inner: int,
) -> torch.Tensor:
    """Threshold T2 of each check, `[M, T, 2]`."""
    expected_MT3 = size_M[:, None, None] * (scales_T3 / math.sqrt(inner))
    product_MT = torch.maximum(norms_MT, expected_MT3[..., 0])
    checksum_MT2 = torch.maximum(checksum_MT2.abs(), expected_MT3[..., 1:])
    floor_M = config.floor(inner) + config.split_floor(inner) * size_M
    limit_MT2 = config.noise(inner) * (2.0 * product_MT[..., None] + checksum_MT2)
    return limit_MT2 + floor_M[:, None, None]
