"""Row checks of emulated products: the same on every device, in plain torch, without a host wait.

The weight's checksums go through the product as further columns of B, split, scaled and promoted
like all others, so that both sides of a check round alike. A suspicion is an alarm: there is no
second product here, and nothing is repaired. Letters: M rows, N columns, T tiles of TILE columns.
"""

from __future__ import annotations

import math

import torch

from proa_kernels import verdict
from proa_kernels.checksum import TILE, joined, ramp
from proa_kernels.emulated import config


def widened(b_KN: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`[K, N + 2 T]`: B and its checksum (`checksum.take(b.T).columns`) beside it."""
    return torch.cat([b_KN, joined(columns, torch.float32)], 1)


def judged(
    a_MK: torch.Tensor, wide_MN: torch.Tensor, scales: torch.Tensor, products: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product without its check columns, and the verdict, float64 `[8]`."""
    tiles = scales.shape[1]
    acc_MN = wide_MN[:, : wide_MN.shape[1] - 2 * tiles]
    checksum_MT2 = wide_MN[:, acc_MN.shape[1] :].reshape(len(a_MK), tiles, 2)
    if not acc_MN.numel():
        return acc_MN, verdict.nothing(acc_MN.device)
    sums_MT2, norms_MT = _sums(acc_MN)
    residual_MT2 = sums_MT2 - checksum_MT2
    limit_MT2 = _limits(a_MK, norms_MT, checksum_MT2, scales, products)
    ratio_MT2 = residual_MT2.abs() / limit_MT2
    # Compared with Inf, not with each other: NaN and Inf are faults, in the limit too.
    numbers_MT2 = torch.isfinite(ratio_MT2) & torch.isfinite(limit_MT2)
    ratio_MT = torch.where(numbers_MT2, ratio_MT2, math.inf).amax(2)
    return acc_MN, _verdict(ratio_MT, residual_MT2, acc_MN.shape[1])


def _sums(acc_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[M, T, 2]` sums and `[M, T]` norms of each tile; fp32 sums in pairs, not one by one."""
    sums, norms = [], []
    for part_MJ in torch.split(acc_MN, TILE, 1):
        steps_J = ramp(part_MJ.shape[1], acc_MN.dtype, acc_MN.device)[1]
        sums.append(torch.stack([part_MJ.sum(1), (part_MJ * steps_J).sum(1)], 1))
        norms.append(torch.linalg.vector_norm(part_MJ, dim=1))
    return torch.stack(sums, 1), torch.stack(norms, 1)


def _limits(
    a_MK: torch.Tensor,
    norms_MT: torch.Tensor,
    checksum_MT2: torch.Tensor,
    scales: torch.Tensor,
    products: int,
) -> torch.Tensor:
    inner = a_MK.shape[1]
    size_M = torch.linalg.vector_norm(a_MK, dim=1)
    expected_T3 = (scales.amin(0) / math.sqrt(max(1, inner))).float()
    expected_MT3 = size_M[:, None, None] * expected_T3
    product_MT = torch.maximum(norms_MT, expected_MT3[..., 0])
    checksum_MT2 = torch.maximum(checksum_MT2.abs(), expected_MT3[..., 1:])
    floor = inner * TILE * 2.0**-126
    noise = config.noise(inner, products)
    return noise * (2.0 * product_MT[..., None] + checksum_MT2) + floor


def _verdict(ratio_MT: torch.Tensor, residual_MT2: torch.Tensor, outputs: int) -> torch.Tensor:
    tiles = ratio_MT.shape[1]
    alarm_MT = ~(ratio_MT <= 1.0)
    alarms = alarm_MT.sum().double()
    worst = ratio_MT.reshape(-1).argmax()
    row, tile = worst // tiles, worst % tiles
    ones, steps = residual_MT2.reshape(-1, 2).double().index_select(0, worst.view(1))[0].unbind()
    ratio = steps / ones  # as in checksum.place_of
    column = 2.0 * torch.round((TILE - 1 - ratio.abs() * TILE) / 2.0) + (ratio < 0.0)
    width = torch.clamp(outputs - tile * TILE, max=TILE)
    known = (column >= 0) & (column < width) & (alarms > 0)
    column = torch.where(known, column + tile * TILE, -1.0)
    found = residual_MT2.new_full((verdict.WIDTH,), -1.0, dtype=torch.float64)
    # `fill_`: a number put in by its index would be copied from the host.
    found[verdict.CHECKS].fill_(ratio_MT.numel())
    found[verdict.REPAIRED : verdict.CLEARED + 1].fill_(0.0)
    found[verdict.ALARMS] = alarms
    found[verdict.RATIO] = ratio_MT.max().double()
    found[verdict.ROW] = torch.where(alarms > 0, row.double(), -1.0)
    found[verdict.COLUMN] = column
    return found
