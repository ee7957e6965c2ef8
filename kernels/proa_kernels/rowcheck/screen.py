"""The clean path: sums, checksums and limits of all rows in fp32, with one pass over the results.

The norm |C| of T2 would be a second pass over them, and |a| one over the inputs, so sieves come
first whose limits are never above T2. What one passes T2 passes, what it does not goes on to the
next: `quick`, without either norm where the product knows the sums of its inputs; `sieve`, with
|a|; then |C| is taken and T2 itself asked.
"""

from __future__ import annotations

import math
from functools import cache, cached_property

import torch

from proa_kernels.checksum import TILE, ramp
from proa_kernels.rowcheck import config
from proa_kernels.rowcheck.layer import layer_of
from proa_kernels.rowcheck.product import Product, Tiling

SQUARES_AT_ONCE = 1 << 18  # values: 1 MiB


class Screen:
    """Residuals `[B, T, 2, P]` of one product's accumulators, without signs, and their limits."""

    def __init__(self, product: Product, acc_BNP: torch.Tensor) -> None:
        self._product, self._acc = product, acc_BNP
        self._checks = product.checksums()
        self._layer = layer_of(product)
        residual = tile_sums(acc_BNP, product.tiling)
        if self._layer.bias_sums is not None:
            residual.sub_(self._layer.bias_sums)
        self.residual = residual.sub_(self._checks).abs_()

    @cached_property
    def _size(self) -> torch.Tensor:
        """|a|, for each tile where groups have tiles of their own."""
        per_group = self._product.tiling.per_group
        size_BGP = self._product.squares().sqrt_()
        if size_BGP.shape[1] > 1 and per_group > 1:
            size_BGP = size_BGP.repeat_interleave(per_group, 1)
        return size_BGP

    def quick(self) -> torch.Tensor:
        """The worst ratio of each row, `[B, G, P]`, to one limit for all tiles, never above T2; NaN
        where something is NaN or Inf.

        |sum a| / sqrt K is at most |a| (Cauchy, Schwarz), and near it where inputs have one sign,
        as after a ReLU. If that is more, the bias's norm counts, as it does in T2 for |C|.
        """
        product = self._product
        unit, least, shares = self._layer.limit
        residual = self.residual if shares is None else self.residual * shares
        sums_BGP = product.sums()
        if sums_BGP is None:
            limit_BGP = self._size[:, :: product.tiling.per_group] * unit
        else:
            # The sum is itself off by a share of sum |a|, which is at most sqrt K |a|.
            share = 1.0 / (math.sqrt(product.inner) * (1.0 + config.bound(product.inner)))
            limit_BGP = sums_BGP.abs().mul_(share * unit)
        limit_BGP.clamp_min_(least)
        by_group = residual.view(len(residual), limit_BGP.shape[1], -1, residual.shape[3])
        # A limit of Inf would pass all: 0 Inf is NaN.
        return by_group.amax(2).div_(limit_BGP).add_(limit_BGP, alpha=0.0)

    @cached_property
    def _units_T3(self) -> torch.Tensor:
        """In units of |a|: |W|_F / sqrt K, and |c| / sqrt K of both checksums."""
        return self._product.scales / math.sqrt(self._product.inner)

    def sieve(self) -> torch.Tensor:
        """Ratios of residuals to a limit at or below T2; NaN where something is NaN or Inf."""
        inner = self._product.inner
        noise, split = config.noise(inner), config.split_floor(inner)
        size = self._size.unsqueeze(2)
        small = (2.0 * noise * self._units_T3[:, :1] + split).float()  # beside |check|
        large = (noise * self._units_T3[:, 1:]).float() + small  # beside |a| |c| / sqrt K
        limit = torch.add(size * small[..., None], self._checks.abs(), alpha=noise)
        limit = torch.maximum(limit, size * large[..., None], out=limit)
        # |C|, or the bias, is at least half of |sum C| / sqrt TILE: far above |a| |W| / sqrt K
        # where all have one sign, while their second sum is small.
        limit[:, :, 1].add_(self._checks[:, :, 0].abs(), alpha=noise / math.sqrt(TILE))
        return self._ratio(limit.add_(config.floor(inner)))

    def ratio(self) -> torch.Tensor:
        """Ratios of residuals to T2, which needs one more pass over the accumulators."""
        inner = self._product.inner
        size = self._size.unsqueeze(2)
        bound = tile_squares(self._acc, self._product.tiling).sqrt_().unsqueeze(2)
        bound = torch.maximum(bound, size * self._units_T3[:, :1].float()[..., None])
        norms_T = self._layer.bias_norms
        if norms_T is not None:
            bound = torch.maximum(bound, norms_T[:, None, None])
        limit = torch.maximum(self._checks.abs(), size * self._units_T3[:, 1:].float()[..., None])
        limit = limit.add_(bound, alpha=2.0).mul_(config.noise(inner))
        limit = limit.add_(size, alpha=config.split_floor(inner)).add_(config.floor(inner))
        # |C|^2 may be Inf where C is not, and would let all pass: 0 Inf is NaN, which does not.
        return self._ratio(limit).add_(limit.mul(0.0))

    def _ratio(self, limit: torch.Tensor) -> torch.Tensor:
        # A limit of Inf would pass all. It is one where |a| is, or a scale; a check value of Inf
        # is in the residual, too. 0 Inf is NaN.
        unsafe = self._size * self._units_T3.sum().mul(0.0).float()
        return self.residual.div(limit).add_(unsafe.unsqueeze(2))


def limits(
    norms_RT: torch.Tensor,
    size_R: torch.Tensor,
    checks_RT2: torch.Tensor,
    scales_T3: torch.Tensor,
    inner: int,
) -> torch.Tensor:
    """T2 of rows, `[R, T, 2]`, in the dtype given; `norms_RT` counts the bias."""
    expected_RT3 = size_R[:, None, None] * (scales_T3 / math.sqrt(inner))
    bound_RT = torch.maximum(norms_RT, expected_RT3[..., 0])
    weighed_RT2 = torch.maximum(checks_RT2.abs(), expected_RT3[..., 1:])
    floor_R = config.floor(inner) + config.split_floor(inner) * size_R
    limit_RT2 = config.noise(inner) * (2.0 * bound_RT[..., None] + weighed_RT2)
    return limit_RT2 + floor_R[:, None, None]


def tile_sums(acc_BNP: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Both sums of each row in each tile, `[B, T, 2, P]`."""
    found = []
    for start, count, width in tiling.runs():
        ramp_2J = _ramp(width, acc_BNP.dtype, acc_BNP.device)
        part = _run(acc_BNP, start, count, width)  # [B, count, J, P]
        batch, _, _, places = part.shape
        if width == 1:
            found.append(part * ramp_2J)
        elif places == 1:
            found.append((part.squeeze(3) @ ramp_2J.T).unsqueeze(3))
        else:
            # One image and tile is a matrix; the ramp is on its left.
            flat = part.flatten(0, 1) if count > 1 else part.squeeze(1)
            sums = torch.bmm(ramp_2J.expand(len(flat), 2, width), flat)
            found.append(sums.view(batch, count, 2, places))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


@cache
def _ramp(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The check vectors, made once: a dozen small operations."""
    return ramp(width, dtype, device)


def squares_of(values_BNP: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Sums of squares over the columns of each group, `[B, G, P]`, in parts that fit a cache."""
    batch, columns, places = values_BNP.shape
    out = values_BNP.new_empty(batch, groups, places)
    step = max(1, SQUARES_AT_ONCE // max(1, columns * places))
    for start in range(0, batch, step):
        part = values_BNP[start : start + step].square()
        part = part.view(len(part), groups, -1, places)
        torch.sum(part, 2, out=out[start : start + step])
    return out


def tile_squares(acc_BNP: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Sums of squares of each row in each tile, `[B, T, P]`."""
    parts = [_run(acc_BNP, *run).square().sum(2) for run in tiling.runs()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _run(acc_BNP: torch.Tensor, start: int, count: int, width: int) -> torch.Tensor:
    part = acc_BNP[:, start : start + count * width]
    if count == 1:
        return part.unsqueeze(1)
    return part.reshape(len(part), count, width, -1)
