"""One cell of the campaign: one kind of fault at one site and moment, on operands of one kind.

Letters: M rows, N outputs (one tile), K inner, F rows with a fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from proa.integrity.campaign.counts import Counts
from proa.integrity.campaign.distributions import DTYPES
from proa.integrity.campaign.faults import MANY, corrupt, differs, width_of, words
from proa.integrity.campaign.operators import (
    OPERATORS,
    Broken,
    Change,
    Operator,
    broken,
    undisturbed,
)
from proa_kernels import Verdict

LARGE = 1e-3  # of the outputs' sigma
# Where in K a fault of a moment hits: the share of the sum that is done, and the span after it.
MOMENTS = {"early": 1 / 8, "mid": 1 / 2, "late": 7 / 8}
FINAL = "final"  # after the whole sum
ALWAYS = "always"  # stored before the product, read all along
REPEATED = "repeated"  # the recomputation goes wrong in the same way


@dataclass(frozen=True)
class Cell:
    """`rows`, `outputs`, `inner`: the product's M, N, K. `rounds`: other operands each time.
    `singles`: faults tried one by one in each round, which tells whether they are located."""

    operator: str
    dtype: str
    distribution: str
    inner: int
    site: str
    fault: str
    moment: str
    rows: int = 256
    outputs: int = 128
    rounds: int = 1
    singles: int = 0

    @property
    def name(self) -> str:
        """Unlike that of any other cell."""
        kind = (self.operator, self.dtype, self.distribution, self.site, self.fault, self.moment)
        sizes = (self.rows, self.outputs, self.inner, self.rounds, self.singles)
        return "/".join(map(str, (*kind, *sizes)))


@dataclass(frozen=True)
class Case:
    """Operands, and a checked call with them."""

    operator: Operator
    x: torch.Tensor
    weight: torch.Tensor

    @cached_property
    def constants(self) -> tuple[torch.Tensor, ...]:
        return self.operator.take(self.weight)

    @cached_property
    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x `[M, K]` and weight `[N, K]`."""
        return self.operator.layout.matrices(self.x, self.weight)

    @cached_property
    def clean(self) -> torch.Tensor:
        """What the product gives without a fault, `[M, N]`."""
        return self.undisturbed(self.weight, self.constants).clean

    @cached_property
    def sigma(self) -> float:
        return float(self.clean.float().std())

    def call(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.operator.call(self.x, self.weight, self.constants, True)

    def broken(self, change: Change, *, repeated: bool = False) -> Broken:
        columns = self.operator.layout.columns
        return broken(self.call, change, columns=columns, repeated=repeated)

    def undisturbed(self, weight: torch.Tensor, constants: tuple[torch.Tensor, ...]) -> Broken:
        """A call without a fault in the product, with this weight and these constants."""
        call = partial(self.operator.call, self.x, weight, constants, True)
        return undisturbed(call, columns=self.operator.layout.columns)

    def few(self, at: int) -> tuple[Case, int]:
        """The same weight with few rows, and how many: for faults tried one by one."""
        x, rows = self.operator.layout.few(self.x, at)
        small = replace(self, x=x)
        vars(small)["constants"] = self.constants
        return small, rows


class Cases:
    """Makes operands, and keeps the last few: cells that follow each other share them."""

    def __init__(self, seed: int, kept: int = 4) -> None:
        self._seed, self._kept = seed, kept
        self._cases: dict[tuple[object, ...], Case] = {}

    def get(self, cell: Cell, round_: int) -> Case:
        sizes = (cell.rows, cell.outputs, cell.inner)
        key = (cell.operator, cell.dtype, cell.distribution, sizes, round_)
        if key not in self._cases:
            while len(self._cases) >= self._kept:
                del self._cases[next(iter(self._cases))]
            seed = seed_of(self._seed, cell.distribution, sizes, round_)
            operator = OPERATORS[cell.operator]
            made = operator.layout.make(cell.distribution, sizes, DTYPES[cell.dtype], seed)
            self._cases[key] = Case(operator, *made)
        return self._cases[key]


def seed_of(*parts: object) -> int:
    """A seed of its own for everything that has a name, whatever ran before it."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def run_cell(cell: Cell, cases: Cases, seed: int) -> Counts:
    """Inject, look, count."""
    found = Counts()
    dice = torch.Generator().manual_seed(seed_of(seed, cell.name))
    for round_ in range(cell.rounds):
        case = cases.get(cell, round_)
        _SITES[cell.site](cell, case, dice, found)
    return found


def _in_product(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """Faults of single products: in every row at once, then some of them one by one."""
    if cell.moment != REPEATED:
        change = partial(faulty_rows, cell.site, cell.fault, cell.moment, *case.matrices, dice)
        _count_rows(case.broken(lambda clean: change(clean)[0]), case, cell, found)
    for _ in range(cell.singles):
        _one(cell, case, dice, found)


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


def _count_rows(done: Broken, case: Case, cell: Cell, found: Counts) -> None:
    hit = differs(done.faulty, done.clean).any(1)
    detected = hit & ~differs(done.after, done.clean).any(1)
    neither = differs(done.after, done.faulty) & differs(done.after, done.clean)
    if int(detected.sum()) != done.verdict.repaired:
        raise RuntimeError(
            f"{cell.name}: the verdict says {done.verdict.repaired} rows were repaired, and"
            f" {int(detected.sum())} have their clean values"
        )
    _add(found, case, done.clean, done.faulty, detected)
    found.corrected += int(detected.sum())
    found.miscorrected += int(neither.any(1).sum())
    if cell.fault == "bit" and cell.site == "accumulator" and cell.moment == FINAL:
        _add_bits(found, done, detected, case.x.dtype)


def _add(
    found: Counts, case: Case, clean: torch.Tensor, faulty: torch.Tensor, detected: torch.Tensor
) -> None:
    """Rows of clean and faulty accumulators, and whether each fault was found."""
    hit = differs(faulty, clean).any(1)
    visible = differs(faulty.to(case.x.dtype), clean.to(case.x.dtype)).any(1)
    large = hit & ~((faulty.float() - clean.float()).abs() <= LARGE * case.sigma).all(1)
    found.injected += int(hit.sum())
    found.detected += int(detected.sum())
    found.visible += int(visible.sum())
    found.visible_detected += int((visible & detected).sum())
    found.large += int(large.sum())
    found.large_detected += int((large & detected).sum())


def _add_bits(found: Counts, done: Broken, detected: torch.Tensor, dtype: torch.dtype) -> None:
    hit = differs(done.faulty, done.clean)
    columns = hit.float().argmax(1, keepdim=True)
    before, after = (one.gather(1, columns)[:, 0] for one in (done.clean, done.faulty))
    width = width_of(before.dtype)
    masks = (words(before) ^ words(after)).long() & ((1 << width) - 1)
    bits = masks.double().log2().long()
    visible = differs(after.to(dtype), before.to(dtype))
    kinds = (torch.ones_like(detected), detected, visible, visible & detected)
    table = torch.stack([torch.bincount(bits[kind], minlength=width) for kind in kinds], 1)
    found.add(Counts(bits=dict(enumerate(table.tolist()))))


def _one(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """A single fault in a small product: is it located? One that is repeated is counted here."""
    small, rows = case.few(int(torch.randint(len(case.x), (), generator=dice)))
    row = int(torch.randint(rows, (), generator=dice))
    fault = OneRow(cell.site, cell.fault, cell.moment, row, dice, small.matrices)
    done = small.broken(fault.change, repeated=cell.moment == REPEATED)
    alarm = torch.tensor([done.verdict.alarms > 0])
    if cell.moment == REPEATED:
        _add(found, case, done.clean[row : row + 1], done.faulty[row : row + 1], alarm)
        found.corrected += done.verdict.repaired
    if alarm:
        found.located_of += 1
        found.located += fault.is_at(done.verdict.row, done.verdict.column)


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


def _in_weight(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """A stored weight changes after its checksum was taken: every row of the product is wrong."""
    clean = case.clean
    for _ in range(cell.singles):
        wrong, column = _with_one_wrong(case.weight, cell.fault, dice)
        done = case.undisturbed(wrong, case.constants)
        verdict = done.verdict
        alarm = torch.tensor([verdict.alarms > 0])
        _add(found, case, clean.reshape(1, -1), done.clean.reshape(1, -1), alarm)
        found.corrected += bool(verdict.repaired)
        found.located_of += bool(alarm)
        found.located += bool(alarm) and verdict.column == column


def _in_constants(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """What is stored of the weight changes: an alarm, or none, and an output that is right."""
    which = case.operator.stored.index(cell.site)
    clean, kept = case.clean, case.constants[which]
    for _ in range(cell.singles):
        wrong, _ = _with_one_wrong(kept, cell.fault, dice)
        constants = (*case.constants[:which], wrong, *case.constants[which + 1 :])
        done = case.undisturbed(case.weight, constants)
        found.injected += bool(differs(wrong, kept).any())
        found.detected += done.verdict.alarms > 0
        found.visible += bool(differs(done.after, clean).any())


def _with_one_wrong(
    values: torch.Tensor, fault: str, dice: torch.Generator
) -> tuple[torch.Tensor, int]:
    """A copy with one element faulty, and the index of it in the first dimension."""
    flat = values.reshape(1, -1)
    done = corrupt(fault, flat, dice)
    inner = flat.shape[1] // len(values)
    return done.rows.view(values.shape), int(done.columns[0]) // inner


def _in_output(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """The stored output changes after its check. Nothing looks at it again: by design."""
    out, raw = case.call()
    rows = out.movedim(case.operator.layout.columns, -1).flatten(0, -2)
    wrong = corrupt(cell.fault, rows, dice).rows
    detected = torch.full((len(rows),), Verdict.read(raw).alarms > 0)
    _add(found, case, rows, wrong, detected)


def _clean(_cell: Cell, case: Case, _dice: torch.Generator, found: Counts) -> None:
    """No fault: whatever alarms is a false positive."""
    _, raw = case.call()
    verdict = Verdict.read(raw)
    found.add(Counts(clean_checks=verdict.checks, false_positives=verdict.alarms))
    found.cleared += verdict.cleared
    found.worst_ratio = max(found.worst_ratio, verdict.ratio)


Site = Callable[[Cell, Case, torch.Generator, Counts], None]
_SITES: dict[str, Site] = {
    "clean": _clean,
    "accumulator": _in_product,
    "operand": _in_product,
    "operand-weight": _in_product,
    "weight": _in_weight,
    "checksum": _in_constants,
    "norms": _in_constants,
    "output": _in_output,
}
SITES = tuple(_SITES)
