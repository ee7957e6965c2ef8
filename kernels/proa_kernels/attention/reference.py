"""Checked attention: definition of `proa::checked_attention`, in plain torch.

Letters: H heads (all leading sizes in one), M queries, N keys, E width; R rows of one block.
Three steps in fp32, each checked, block by block so that the scores' memory is bounded:

1. scores = (scale q) @ k.T, the checked product: sums of k over tiles of 128 keys.
2. p = softmax(scores + bias), computed twice and compared bit for bit; each row sums to 1. Sums
   alone would not do: a wrong exponential is divided by a sum that is wrong with it.
3. out = p @ v, the checked product, of the very p of step 2.

Not seen: a query, key, value or mask that was wrong before, and the scaling of q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from proa_kernels.bmm.reference import checked_product
from proa_kernels.dup.reference import duplicated
from proa_kernels.rowcheck import Tamper
from proa_kernels.rowcheck.config import UNIT

SCORES_MAX = 1 << 19  # of one block: 2 MiB of fp32, held about four times; more leaves the cache


@dataclass
class Tally:
    """The verdict of several checks; `row` and `column` of the first alarm, which is the cause."""

    counts: list[float] = field(default_factory=lambda: [0.0] * 4)
    ratio: float = 0.0
    row: float = -1.0
    column: float = -1.0

    def add(self, counts: list[float], ratio: float, row: float, column: float) -> None:
        if counts[1] and not self.counts[1]:
            self.row, self.column = row, column
        self.counts = [one + more for one, more in zip(self.counts, counts, strict=True)]
        self.ratio = max(self.ratio, ratio)

    def tensor(self, device: torch.device) -> torch.Tensor:
        values = [*self.counts, self.ratio, -1.0, self.row, self.column]
        return torch.tensor(values, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Heads:
    """`[H, ...]` of a tensor that may be shared by several heads: `places[h]` is that of head h."""

    values: torch.Tensor
    places: torch.Tensor | None

    def part(self, heads: slice) -> torch.Tensor:
        return self.values[heads if self.places is None else self.places[heads]]


@dataclass(frozen=True)
class Attention:
    """One call. `q` `[H, M, E]`; `k`, `v` of H heads; `mask` of H heads, bool or additive, its
    query size 1 or M; `causal`: query i sees keys 0 to i."""

    q: torch.Tensor
    k: Heads
    v: Heads
    mask: Heads | None
    scale: float
    causal: bool
    correct: bool
    tamper: Tamper | None

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 `[H, M, E of v]` and the verdict, float64 `[8]`."""
        heads, rows = self.q.shape[:2]
        keys, width = self.k.values.shape[1], self.v.values.shape[2]
        out = self.q.new_zeros((heads, rows, width), dtype=torch.float32)
        tally = Tally()
        if not keys or not width:  # nothing to attend to: zeros, as torch has it
            return out, tally.tensor(out.device)
        rows_max = max(1, min(rows, SCORES_MAX // max(1, keys)))
        heads_max = max(1, SCORES_MAX // max(1, rows_max * keys))
        for head in range(0, heads, heads_max):
            for row in range(0, rows, rows_max):
                block = _Block(
                    self, slice(head, head + heads_max), slice(row, row + rows_max), tally
                )
                out[block.heads, block.rows] = block.run()
        return out, tally.tensor(out.device)


class _Block:
    """Some queries of some heads."""

    def __init__(self, call: Attention, heads: slice, rows: slice, tally: Tally) -> None:
        self.call, self.heads, self.rows, self.tally = call, heads, rows, tally
        self.q = call.q[heads, rows].float() * call.scale

    def run(self) -> torch.Tensor:
        call = self.call
        k, v = call.k.part(self.heads), call.v.part(self.heads)
        scores, found = checked_product(self.q, k.mT, correct=call.correct, tamper=call.tamper)
        # A wrong score spoils its whole row of the output.
        self._count(*_parts(found), places=False)
        p = self._softmax(scores)
        out, found = checked_product(p, v, correct=call.correct, tamper=call.tamper)
        self._count(*_parts(found))
        return out

    def _count(
        self, counts: list[float], ratio: float, row: float, column: float, *, places: bool = True
    ) -> None:
        if row >= 0:  # of the block's rows -> of the call's
            head, at = divmod(int(row), self.q.shape[1])
            row = (self.heads.start + head) * self.call.q.shape[1] + self.rows.start + at
        self.tally.add(counts, ratio, row, column if places else -1.0)

    def _softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Step 2: checks of rows in tiles of 128 keys, and one of each row's sum."""
        call, bias = self.call, self._bias(scores)

        def compute(attempt: int) -> torch.Tensor:
            p = _softmax(scores, bias)
            if call.tamper is not None:
                call.tamper(p.flatten(0, 1), attempt)
            return p

        p, found = duplicated(compute, scores.shape[2], -1, correct=call.correct)
        self._count(*_parts(found), places=False)
        ratio_R = _off_one(p, bias).flatten()
        wrong_R = ~(ratio_R <= 1.0)
        alarms = float(wrong_R.sum())
        row = int(wrong_R.byte().argmax()) if alarms else -1
        ratio = float(ratio_R.nan_to_num(math.inf).max())
        self._count([float(len(ratio_R)), alarms, 0.0, 0.0], ratio, row, -1.0)
        return p

    def _bias(self, scores: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores: 0 and -Inf of a bool mask, or the mask."""
        bias: torch.Tensor | None = None
        mask = self.call.mask
        if mask is not None:
            bias = mask.values if len(mask.values) == 1 else mask.part(self.heads)
            bias = bias[:, self.rows] if bias.shape[1] > 1 else bias
        if self.call.causal:
            at = scores.device
            row = torch.arange(self.rows.start, self.rows.start + scores.shape[1], device=at)
            bias = torch.arange(scores.shape[2], device=at)[None, None] <= row[None, :, None]
        if bias is None:
            return None
        if bias.dtype == torch.bool:
            shown = bias.new_zeros(bias.shape, dtype=torch.float32)
            return shown.masked_fill_(~bias, -math.inf)
        return bias.float()


def _parts(found: torch.Tensor) -> tuple[list[float], float, float, float]:
    values = found.tolist()
    return values[:4], values[4], values[6], values[7]


def _softmax(scores: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Of the last dimension; zeros where the bias hides every key, as torch has it."""
    if bias is None:
        return torch.softmax(scores, -1)
    biased = scores + bias
    p = torch.softmax(biased, -1)
    if bool(p[..., 0].isnan().any()):
        p[biased.amax(-1) == -math.inf] = 0.0
    return p


def _off_one(p: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """How far a row's sum is from 1, over what N roundings may make of it."""
    sums = p.sum(-1)
    off = (sums - 1.0).abs() / (UNIT * (p.shape[2] + 8))
    return off if bias is None else off.where(sums != 0.0, 0.0)
