"""Scheme `dup`: the product is computed twice and compared bit by bit; a third one decides.

For layers so small that checksums cost as much. It sees what differs between two computations in
a row: not weights or inputs that changed, nor a fault that comes out the same again. It needs
products that repeat bit for bit, as those of a CPU do. No threshold, no rounding, no dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from proa_kernels.rowcheck import Tiling

# The result as it is returned, attempt 0, 1 or 2: tests and the fault injector change some.
Compute = Callable[[int], torch.Tensor]


def duplicated(
    compute: Compute, outputs: int, channels_at: int, *, correct: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first result and its verdict, float64 `[8]`: checks are rows times tiles of 128 columns.

    An alarm is a check whose two results differ, ratio Inf. `repaired` (mode correct): each element
    that differs has the third result's bits in one of them, and now in the output. Nothing is ever
    cleared. `channels_at`: the dimension with the `outputs` columns.
    """
    first, second = compute(0), compute(1)
    tiling, rows = Tiling(1, outputs), first.numel() // outputs
    values = [float(rows * tiling.count), 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0]
    # This one stops at the first difference, and writes nothing.
    if not torch.equal(_bits(first), _bits(second)):
        first_MN, second_MN = first.movedim(channels_at, -1), second.movedim(channels_at, -1)
        differs = _bits(first_MN) != _bits(second_MN)
        third_MN = compute(2).movedim(channels_at, -1)
        odd = differs & (_bits(third_MN) != _bits(first_MN))
        odd &= _bits(third_MN) != _bits(second_MN)
        differs_MN, odd_MN = (one.reshape(rows, outputs) for one in (differs, odd))
        alarms_MT, failed_MT = (_by_tile(one, tiling) for one in (differs_MN, odd_MN))
        good_MT = alarms_MT & ~failed_MT
        if correct:
            which = _spread(good_MT, tiling).view(first_MN.shape) & differs
            first_MN.copy_(torch.where(which, third_MN, first_MN))
        row, tile = (int(at) for at in alarms_MT.nonzero()[0])
        span = tiling.span(tile)
        places = differs_MN[row, span].nonzero().flatten()
        column = span.start + int(places[0]) if len(places) == 1 else -1
        values[1:3] = float(alarms_MT.sum()), float(good_MT.sum()) if correct else 0.0
        values[4:] = math.inf, -1.0, float(row), float(column)
    return first, torch.tensor(values, dtype=torch.float64, device=first.device)


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32 if values.element_size() == 4 else torch.int16)


def _by_tile(flags_MN: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    return torch.stack([flags_MN[:, tiling.span(t)].any(1) for t in range(tiling.count)], 1)


def _spread(flags_MT: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    spans = [tiling.span(tile) for tile in range(tiling.count)]
    widths = torch.tensor([span.stop - span.start for span in spans], device=flags_MT.device)
    return flags_MT.repeat_interleave(widths, 1, output_size=spans[-1].stop)
