"""The checked product of int8 matrices: definition of `proa::checked_int_mm`, in plain torch.

Letters: M rows, N outputs, K inner, T tiles of TILE outputs, J outputs of one tile, D digits.
Exact: all sums wrap modulo 2^32, as int32 accumulators do and torch's int32 arithmetic does, so
the limit is 0 and nothing is rounding. For every row and tile, modulo 2^32,
`sum_j C[j] = a.c1` and `sum_j C[j] (j + 1) = a.c2`: any single wrong element breaks the first.
The checksums are kept as int8 digits of base 256 and go through the same matrix unit as the
weights (facts: abft D.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from proa_kernels.checksum import TILE
from proa_kernels.rowcheck import Tamper, Tiling

PLACES = (0, 8, 16)  # bits of the digits
DIGITS = (2, 3)  # of c1, below 2^14, and of c2, below 2^21
_WORD = 1 << 32
ROWS_MIN, STEP = 17, 8  # of torch's product of int8 on a GPU


def take(weight_KN: torch.Tensor) -> torch.Tensor:
    """`[K, 5 T]` int8: the digits of c1 and of c2, tile after tile, of an int8 `[K, N]`."""
    pairs = zip(_sums(weight_KN), DIGITS, strict=True)
    return torch.stack([one for sums, n in pairs for one in _digits(sums, n)], dim=2).flatten(1)


def checked_product(
    x_MK: torch.Tensor,
    weight_KN: torch.Tensor,
    columns: torch.Tensor | None,
    *,
    correct: bool,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 `x @ weight` `[M, N]`, wrapping, and its verdict, float64 `[8]`.

    `x`, `weight`: int8; `columns`: what `take` gave of the weight, None to take it now. With
    `correct`, faulty tiles are replaced by those of a second product that passes.
    """
    columns = take(weight_KN) if columns is None else columns
    return _Call(x_MK, weight_KN, columns, correct, tamper).run()


class _Call:
    """One product, and what was found so far."""

    def __init__(
        self,
        x_MK: torch.Tensor,
        weight_KN: torch.Tensor,
        columns: torch.Tensor,
        correct: bool,
        tamper: Tamper | None,
    ) -> None:
        self.x_MK, self.weight_KN, self.columns = x_MK, weight_KN, columns
        self.correct, self.tamper = correct, tamper

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        acc_MN = self._product(0)
        residual_MT2 = self._residual(acc_MN)
        checks = residual_MT2.shape[0] * residual_MT2.shape[1]
        values: list[float] = [checks, 0, 0, 0, 0.0, -1, -1, -1]
        if bool(residual_MT2.any()):
            values[1:] = self._settle(acc_MN, residual_MT2)
        return acc_MN, torch.tensor(values, dtype=torch.float64, device=acc_MN.device)

    def _product(self, attempt: int) -> torch.Tensor:
        acc_MN = _multiply(self.x_MK, self.weight_KN)
        if self.tamper is not None:
            self.tamper(acc_MN, attempt)
        return acc_MN

    def _residual(self, acc_MN: torch.Tensor) -> torch.Tensor:
        """int32 `[M, T, 2]`, 0 where all is well."""
        sums = _sums(acc_MN)
        thin_MTD = _multiply(self.x_MK, self.columns).view(*sums[0].shape, sum(DIGITS))
        first = DIGITS[0]
        checks = _joined(thin_MTD[..., :first]), _joined(thin_MTD[..., first:])
        return torch.stack([one - two for one, two in zip(sums, checks, strict=True)], dim=2)

    def _settle(self, acc_MN: torch.Tensor, residual_MT2: torch.Tensor) -> list[float]:
        """Decide every suspicion by a second product, and by a second check of both."""
        again_MN = self._product(1)
        residuals = self._residual(acc_MN)
        good_MT = ~self._residual(again_MN).any(2)
        differs_MT = torch.cat([tile.any(2) for tile in _tiles(acc_MN != again_MN)], 1)
        suspect_MT = residual_MT2.any(2)
        # What repeats and passes was a check that erred, for once.
        alarm_MT = suspect_MT & (differs_MT | ~good_MT)
        fixed_MT = alarm_MT & good_MT & self.correct
        counts = [float(one.sum()) for one in (alarm_MT, fixed_MT, suspect_MT & ~alarm_MT)]
        if not counts[0]:
            return [*counts, 0.0, -1, -1, -1]
        row, tile = alarm_MT.nonzero()[0].tolist()
        place = (row, slice(tile * TILE, (tile + 1) * TILE))
        differs_J = acc_MN[place] != again_MN[place]
        column = _column(residuals[row, tile].tolist(), differs_J, tile * TILE)
        at = 0
        for mine_MTJ, again_MTJ in zip(_tiles(acc_MN), _tiles(again_MN), strict=True):
            fixed = fixed_MT[:, at : at + mine_MTJ.shape[1], None]
            mine_MTJ.copy_(torch.where(fixed, again_MTJ, mine_MTJ))
            at += mine_MTJ.shape[1]
        return [*counts, math.inf, -1, row, column]


def _column(residual: list[int], differs_J: torch.Tensor, start: int) -> int:
    """The one element that a recomputation changes; else that whose place in the second sum fits,
    if there is one only; else -1."""
    places = differs_J.nonzero().flatten().tolist()
    if len(places) != 1:
        ones, steps = residual
        places = [j for j in range(len(differs_J)) if (ones * (j + 1) - steps) % _WORD == 0]
    return start + places[0] if len(places) == 1 else -1


def _multiply(x_MK: torch.Tensor, weight_KN: torch.Tensor) -> torch.Tensor:
    """int32 `[M, N]` by torch's one product of int8. On a GPU it takes only sizes that cuBLAS does;
    others are padded with zeros, which change no sum."""
    (rows, inner), outputs = x_MK.shape, weight_KN.shape[1]
    more = (0, 0, 0) if not x_MK.is_cuda else _missing(rows, inner, outputs)
    if not any(more):
        return torch._int_mm(x_MK, weight_KN)  # noqa: SLF001
    x_MK = torch.nn.functional.pad(x_MK, (0, more[1], 0, more[0]))
    weight_KN = torch.nn.functional.pad(weight_KN, (0, more[2], 0, more[1]))
    return torch._int_mm(x_MK, weight_KN)[:rows, :outputs].contiguous()  # noqa: SLF001


def _missing(rows: int, inner: int, outputs: int) -> tuple[int, int, int]:
    """What to pad for a product on a GPU: more than 16 rows, the others multiples of 8."""
    whole = [max(1, -(-size // STEP)) * STEP for size in (inner, outputs)]
    return max(0, ROWS_MIN - rows), whole[0] - inner, whole[1] - outputs


def _sums(matrix_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 `[M, T]`: the sum of each row in each tile, and that with weights 1, 2, ..."""
    ones, steps = [], []
    for tile_MTJ in _tiles(matrix_MN.int()):
        width = tile_MTJ.shape[2]
        ramp_J = torch.arange(1, width + 1, dtype=torch.int32, device=matrix_MN.device)
        ones.append(tile_MTJ.sum(2, dtype=torch.int32))
        steps.append((tile_MTJ * ramp_J).sum(2, dtype=torch.int32))
    return torch.cat(ones, 1), torch.cat(steps, 1)


def _digits(total: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """`total` in `count` int8 digits of base 256, lowest first, each from -128 to 127."""
    for _ in range(count):
        low = (total + 128) % 256 - 128
        yield low.to(torch.int8)
        total = (total - low) // 256
    assert not bool(total.any()), "a checksum beyond its digits"


def _joined(thin_MTD: torch.Tensor) -> torch.Tensor:
    """The number that int32 products with its digits stand for, modulo 2^32."""
    digits = thin_MTD.unbind(2)
    total = digits[0]
    for bits, digit in zip(PLACES[1:], digits[1:], strict=False):
        total = total + (digit << bits)
    return total


def _tiles(acc_MN: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views `[M, T, J]` of tiles of one width."""
    for start, count, width in Tiling(1, acc_MN.shape[1]).runs():
        yield acc_MN[:, start : start + count * width].view(len(acc_MN), count, width)
