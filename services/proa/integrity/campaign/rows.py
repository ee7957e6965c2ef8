"""Faults in the rows that a product gives: where in the sum they hit, and what becomes of it.

Letters: M rows, N outputs (one tile), K inner, F rows with a fault.
"""

from __future__ import annotations

import torch

from proa.integrity.campaign.faults import MANY, corrupt, differs

# Where in K a fault of a moment hits: the share of the sum that is done, and the span after it.
MOMENTS = {"early": 1 / 8, "mid": 1 / 2, "late": 7 / 8}
FINAL = "final"  # after the whole sum
ALWAYS = "always"  # stored before the product, read all along
REPEATED = "repeated"  # the recomputation goes wrong in the same way


def faulty_rows(
    site: str,
    fault: str,
    moment: str,
    x_FK: torch.Tensor,
    weight_NK: torch.Tensor,
    dice: torch.Generator,
    clean_FN: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a product gives after one fault in each row, the wrong column, the changed bits.

    Partial sums and changed operands are multiplied out in fp32, and what the fault changes in that
    is added to the accumulators; elsewhere they stay as the operator's own order of sums left them.
    """
    if site == "accumulator" and moment in (FINAL, REPEATED):
        done = corrupt(fault, clean_FN, dice)
        return done.rows, done.columns, done.bits
    x, weight = x_FK.float(), weight_NK.float()
    if site == "accumulator":
        cut = max(1, int(x.shape[1] * MOMENTS[moment]))
        part, rest = x[:, :cut] @ weight[:, :cut].T, x[:, cut:] @ weight[:, cut:].T
        done = corrupt(fault, part, dice)
        before, after, columns = part + rest, done.rows + rest, done.columns
    else:
        span = _span(x.shape[1], moment)
        if site == "operand":
            done = corrupt(fault, x_FK, dice, span=span)
            before, after = x @ weight.T, done.rows.float() @ weight.T
            columns = torch.full_like(done.columns, MANY)
        else:
            rows = torch.arange(len(x))
            columns = torch.randint(len(weight), (len(x),), generator=dice)
            done = corrupt(fault, weight_NK[columns], dice, span=span)
            by = (done.rows.double() - weight[columns].double())[rows, done.columns]
            before, after = clean_FN, clean_FN.clone()
            wrong = clean_FN[rows, columns].double() + x.double()[rows, done.columns] * by
            after[rows, columns] = wrong.to(after.dtype)
    by_FN = after.double() - before.double()
    wrong_FN = (clean_FN.double() + by_FN).to(clean_FN.dtype)
    after, before = after.to(clean_FN.dtype), before.to(clean_FN.dtype)
    return torch.where(differs(after, before), wrong_FN, clean_FN), columns, done.bits


def _span(inner: int, moment: str) -> tuple[int, int]:
    """The part of K in which an operand goes wrong."""
    first = int(inner * MOMENTS[moment])
    return first, max(first + 1, min(inner, first + inner // 8))


class OneRow:
    """One fault in one row, drawn when the accumulators are known, the same ever after.

    `operands`: x `[M, K]` and weight `[N, K]`; None where the fault needs the accumulators alone.
    """

    def __init__(
        self,
        site: str,
        fault: str,
        moment: str,
        row: int,
        dice: torch.Generator,
        operands: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._kind, self._row, self._dice = (site, fault, moment), row, dice
        self._operands = operands
        self._wrong: torch.Tensor | None = None
        self.column, self.bits = MANY, MANY

    def change(self, clean: torch.Tensor) -> torch.Tensor:
        if self._wrong is None:
            rows = [self._row, (self._row + 1) % len(clean)]  # a neighbour, for what is stale
            x, weight = self._operands or (clean, clean)
            found = faulty_rows(*self._kind, x[rows], weight, self._dice, clean[rows])
            self._wrong = found[0][0]
            self.column, self.bits = int(found[1][0]), int(found[2][0])
        changed = clean.clone()
        changed[self._row] = self._wrong
        return changed

    def is_at(self, row: int, column: int) -> bool:
        """Whether a verdict names the place, as far as the fault has one."""
        return row == self._row and self.column in (MANY, column)
