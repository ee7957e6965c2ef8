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
from proa.integrity.campaign.faults import corrupt, differs, width_of, words
from proa.integrity.campaign.limit import RowLimit
from proa.integrity.campaign.operators import (
    OPERATORS,
    Broken,
    Change,
    Operator,
    broken,
    undisturbed,
)
from proa.integrity.campaign.rows import FINAL, REPEATED, OneRow, faulty_rows
from proa_kernels import Verdict

LARGE = 1e-3  # of the outputs' sigma


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

    @cached_property
    def limit(self) -> RowLimit:
        return RowLimit(*self.matrices)

    def call(self, *, correct: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        return self.operator.call(self.x, self.weight, self.constants, correct)

    def broken(self, change: Change, *, repeated: bool = False) -> Broken:
        return broken(
            self.call,
            change,
            columns=self.operator.layout.columns,
            product=self.operator.product,
            repeated=repeated,
        )

    def undisturbed(self, weight: torch.Tensor, constants: tuple[torch.Tensor, ...]) -> Broken:
        """A call without a fault in the product, with this weight and these constants."""
        call = partial(self.operator.call, self.x, weight, constants, True)
        columns, product = self.operator.layout.columns, self.operator.product
        return undisturbed(call, columns=columns, product=product)

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
    if cell.site == "accumulator":
        _add_hidden(found, case, done.clean, done.faulty, detected)
    found.corrected += int(detected.sum())
    found.miscorrected += int(neither.any(1).sum())
    if cell.fault == "bit" and cell.site == "accumulator" and cell.moment == FINAL:
        _add_bits(found, done, detected, case.x.dtype)


def _is_large(clean: torch.Tensor, faulty: torch.Tensor, sigma: float) -> torch.Tensor:
    """Rows with a difference above LARGE; NaN and Inf are above it."""
    return ~((faulty.float() - clean.float()).abs() <= LARGE * sigma).all(-1)


def _add(
    found: Counts, case: Case, clean: torch.Tensor, faulty: torch.Tensor, detected: torch.Tensor
) -> None:
    """Rows of clean and faulty accumulators, and whether each fault was found."""
    hit = differs(faulty, clean).any(1)
    visible = differs(faulty.to(case.x.dtype), clean.to(case.x.dtype)).any(1)
    large = hit & _is_large(clean, faulty, case.sigma)
    found.injected += int(hit.sum())
    found.detected += int(detected.sum())
    found.visible += int(visible.sum())
    found.visible_detected += int((visible & detected).sum())
    found.large += int(large.sum())
    found.large_detected += int((large & detected).sum())


def _add_hidden(
    found: Counts, case: Case, clean: torch.Tensor, faulty: torch.Tensor, detected: torch.Tensor
) -> None:
    """The faults that the limit hides, in all rows of a case's product."""
    hidden = differs(faulty, clean).any(1) & case.limit.hides(clean, faulty)
    large = _is_large(clean, faulty, case.sigma)
    found.hidden += int(hidden.sum())
    found.hidden_detected += int((hidden & detected).sum())
    found.large_hidden += int((hidden & large & ~detected).sum())


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
        _add_unseen(found, small, case.sigma, done, row, alarm=bool(alarm))
    if alarm:
        found.located_of += 1
        found.located += fault.is_at(done.verdict.row, done.verdict.column)


def _add_unseen(
    found: Counts, small: Case, sigma: float, done: Broken, row: int, *, alarm: bool
) -> None:
    """One that repeats is hidden too where a second look finds it within what rounding may do at
    most (Higham's bound), and clears it."""
    clean, faulty = done.clean[row], done.faulty[row]
    if alarm or not bool(differs(clean, faulty).any()):
        return
    hidden = done.verdict.cleared > 0 or bool(small.limit.hides(done.clean, done.faulty)[row])
    found.hidden += int(hidden)
    found.large_hidden += int(hidden and bool(_is_large(clean, faulty, sigma)))


def _in_step(cell: Cell, case: Case, dice: torch.Generator, found: Counts) -> None:
    """A fault in an earlier step of an operator, one by one: what becomes of its output?"""
    step = case.operator.steps.index(cell.site)
    for _ in range(cell.singles):
        small, rows = case.few(int(torch.randint(len(case.x), (), generator=dice)))
        row = int(torch.randint(rows, (), generator=dice))
        fault = OneRow("accumulator", cell.fault, cell.moment, row, dice, None)
        clean, _ = small.call()
        left, mended = (
            broken(partial(small.call, correct=correct), fault.change, product=step)
            for correct in (False, True)
        )
        if not bool(differs(left.faulty, left.clean).any()):
            continue
        alarm = left.verdict.alarms > 0
        visible = bool(differs(left.out, clean).any())
        large = bool(_is_large(clean, left.out, case.sigma).any())
        # Of the step itself: of faults in several tiles of keys the limit may hide some, and the
        # output that follows is neither the clean one nor that of all of them.
        neither = differs(mended.after, mended.faulty) & differs(mended.after, mended.clean)
        found.add(
            Counts(
                injected=1,
                detected=int(alarm),
                visible=int(visible),
                visible_detected=int(visible and alarm),
                large=int(large),
                large_detected=int(large and alarm),
                corrected=int(alarm and not bool(differs(mended.out, clean).any())),
                miscorrected=int(bool(neither.any())),
                located=int(alarm and left.verdict.row == row),
                located_of=int(alarm),
            )
        )


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
    "scores": _in_step,
    "softmax": _in_step,
    "operand": _in_product,
    "operand-weight": _in_product,
    "weight": _in_weight,
    "checksum": _in_constants,
    "norms": _in_constants,
    "output": _in_output,
}
SITES = tuple(_SITES)
