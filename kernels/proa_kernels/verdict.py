"""The verdict: what a checked operator says about its result, and a program about all of them.

One checked call gives float64 `[WIDTH]`; a protected program's last output is float64
`[1 + layers, WIDTH]`: row 0 sums up, row 1 + i is layer i of the coverage report. Columns:

| 0 checks   | row checks made: rows times column tiles |
| 1 alarms   | checks that found a fault |
| 2 repaired | alarms that a recomputation cleared; it is in the output (mode correct) |
| 3 cleared  | suspicions that were none: rounding of degenerate data, extreme scales |
| 4 ratio    | worst residual over threshold; Inf where a value is NaN or Inf |
| 5 layer    | first layer with an alarm, else that of the worst ratio; -1 within one call |
| 6 row      | row of that layer's worst alarm in the flattened `[rows, K]` input, or -1 |
| 7 column   | its output column, right for a single wrong element, -1 where it cannot be told |

float64 since counts beyond 2^24 must stay exact. Until the worker reads it, nothing synchronises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

CHECKS, ALARMS, REPAIRED, CLEARED, RATIO, LAYER, ROW, COLUMN = range(8)
WIDTH = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of a verdict tensor, on the host."""

    checks: int
    alarms: int
    repaired: int
    cleared: int
    ratio: float
    layer: int
    row: int
    column: int

    @property
    def failed(self) -> int:
        """Alarms that stand: the output is wrong as far as this check can tell."""
        return self.alarms - self.repaired

    @property
    def status(self) -> str:
        """`clean`, `corrected` or `failed`."""
        if self.failed:
            return "failed"
        return "corrected" if self.alarms else "clean"

    @classmethod
    def read(cls, tensor: torch.Tensor) -> Verdict:
        """Of one call's `[WIDTH]` tensor, or the summary of a program's `[1 + layers, WIDTH]`."""
        return _row(tensor.reshape(-1, WIDTH)[0].detach().cpu().numpy())

    @classmethod
    def read_layers(cls, tensor: torch.Tensor) -> tuple[Verdict, ...]:
        """Per layer, of a program's verdict tensor."""
        return tuple(_row(row) for row in tensor.detach().cpu().numpy()[1:])


def _row(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Verdict:
    assert values.shape == (WIDTH,)
    return Verdict(
        checks=int(values[CHECKS]),
        alarms=int(values[ALARMS]),
        repaired=int(values[REPAIRED]),
        cleared=int(values[CLEARED]),
        ratio=float(values[RATIO]),
        layer=int(values[LAYER]),
        row=int(values[ROW]),
        column=int(values[COLUMN]),
    )


def nothing(device: torch.device | str = "cpu") -> torch.Tensor:
    """`[WIDTH]` of a call in which nothing was multiplied, so nothing checked. No copy from the
    host."""
    found = torch.zeros(WIDTH, dtype=torch.float64, device=device)
    found[LAYER:].fill_(-1.0)
    return found


def merge(verdicts: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[1 + layers, WIDTH]` of each layer's `[WIDTH]`, in that order. No synchronisation. Where
    there is none it is on the CPU: there is no other device to tell."""
    if not verdicts:
        return nothing().unsqueeze(0)
    layers = torch.stack(list(verdicts))
    layers[:, LAYER] = torch.arange(len(verdicts), dtype=torch.float64, device=layers.device)
    alarmed = layers[:, ALARMS] > 0
    # The first alarm is the cause: what follows computes with its result.
    chosen = torch.where(alarmed.any(), alarmed.double().argmax(), layers[:, RATIO].argmax())
    summary = layers.index_select(0, chosen.reshape(1)).clone()
    summary[:, : CLEARED + 1] = layers[:, : CLEARED + 1].sum(0)
    summary[:, RATIO] = layers[:, RATIO].max()
    return torch.cat([summary, layers])
