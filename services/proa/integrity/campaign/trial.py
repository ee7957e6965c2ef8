"""One fault in one layer of a running program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from proa.integrity.campaign.cells import LARGE
from proa.integrity.campaign.counts import Counts
from proa.integrity.campaign.faults import MANY, Corrupted, corrupt, differs, possible, width_of
from proa.integrity.campaign.layers import Answers, Checked
from proa.integrity.campaign.operators import Broken, Result, broken, undisturbed
from proa.integrity.campaign.rows import ALWAYS, OneRow

STORED = {"columns": "checksum", "scales": "norms"}  # operator's argument -> site


@dataclass(frozen=True)
class Unit:
    """Faults of one kind at one place. `layer`: its index among the checked ones."""

    layer: int
    site: str
    fault: str
    moment: str

    @property
    def name(self) -> str:
        return f"{self.layer}/{self.site}/{self.fault}/{self.moment}"


class Trial:
    """One fault in one layer's call: acts in its place, and remembers what it did."""

    def __init__(self, unit: Unit, products: int, dice: torch.Generator) -> None:
        self._unit, self._dice = unit, dice
        self._product = int(torch.randint(products, (), generator=dice))
        self._alone = products == 1  # then columns of the product are those of the output
        self.row, self.column, self.bits = MANY, MANY, ""
        self._found = Counts()

    def __call__(self, call: Checked) -> Result:
        if self._unit.site == "output":
            return self._output(call)
        if self._unit.moment == ALWAYS:
            return self._stored(call)
        return self._accumulators(call)

    def _accumulators(self, call: Checked) -> Result:
        clean = self._undisturbed(call)
        self.row = int(torch.randint(max(1, len(clean.clean)), (), generator=self._dice))
        unit = self._unit
        fault = OneRow(unit.site, unit.fault, unit.moment, self.row, self._dice, call.product)
        done, mended = (
            broken(
                partial(call, correct=correct),
                fault.change,
                columns=call.columns,
                product=self._product,
            )
            for correct in (False, True)
        )
        self.column, self.bits = fault.column, _hex(fault.bits, _wrong_one(unit, call, done))
        self._see(done.clean, done.faulty, done.out.dtype)
        if mended.verdict.repaired:
            right = ~differs(mended.out, clean.out)
            self._found.corrected = int(bool(right.all()))
            # What follows one of several products is no longer clean or faulty, element by element.
            neither = ~right & differs(mended.out, done.out) & self._alone
            self._found.miscorrected = int(bool(neither.any()))
        return done.out, done.raw

    def _undisturbed(self, call: Checked, **changed: Any) -> Broken:
        run = partial(call, correct=False, **changed)
        return undisturbed(run, columns=call.columns, product=self._product)

    def _stored(self, call: Checked) -> Result:
        site = self._unit.site
        name = next((name for name, one in STORED.items() if one == site), site)
        value = call.args[name]
        done = corrupt(self._unit.fault, value.reshape(1, -1), self._dice)
        self._place(done, value)
        clean = self._undisturbed(call).clean
        wrong = done.rows.view(value.shape)
        out, raw = call(**{name: wrong}, correct=False)
        faulty = self._undisturbed(call, **{name: wrong}).clean
        self._see(clean, faulty, out.dtype)
        self._found.injected = int(bool(differs(wrong, value).any()))
        return out, raw

    def _output(self, call: Checked) -> Result:
        out, raw = call()
        flat = out.reshape(1, -1)
        if not possible(self._unit.fault, out.dtype):
            return out, raw
        done = corrupt(self._unit.fault, flat, self._dice)
        self._place(done, out)
        self._see(flat.float(), done.rows.float(), out.dtype)
        return done.rows.view(out.shape), raw

    def _place(self, done: Corrupted, value: torch.Tensor) -> None:
        """Where in a stored tensor, by its last dimension and the others as one."""
        self.row, self.column = divmod(int(done.columns[0]), max(1, value.shape[-1]))
        self.bits = _hex(int(done.bits[0]), value.dtype)

    def _see(self, clean: torch.Tensor, faulty: torch.Tensor, dtype: torch.dtype) -> None:
        found = self._found
        found.injected = int(bool(differs(clean, faulty).any()))
        found.visible = int(bool(differs(clean.to(dtype), faulty.to(dtype)).any()))
        gap = (faulty.double() - clean.double()).abs()
        sigma = float(clean.double().std()) if clean.numel() > 1 else 0.0
        small = bool((gap <= LARGE * sigma).all())
        found.large = int(bool(found.injected) and not small)

    def count(self, counts: Counts, answers: Answers, changed: bool) -> None:
        """Add what became of the fault, by the verdict on the whole program."""
        found, alarm = self._found, int(answers.verdict.alarms > 0)
        if alarm:
            found.detected = alarm
            found.visible_detected, found.large_detected = found.visible, found.large
        if alarm and self._unit.moment != ALWAYS and self._unit.site != "output":
            found.located_of = 1
            verdict = answers.verdict
            column = self.column in (MANY, verdict.column) or not self._alone
            right = verdict.layer == self._unit.layer and verdict.row == self.row
            found.located = int(right and column)
        found.answers = int(changed)
        counts.add(found)


def _hex(bits: int, dtype: torch.dtype) -> str:
    """Which bits of an element of that type changed; empty where several elements did."""
    return "" if bits == MANY else hex(bits & ((1 << width_of(dtype)) - 1))


def _wrong_one(unit: Unit, call: Checked, done: Broken) -> torch.dtype:
    """The type of the element that went wrong."""
    if unit.site == "accumulator" or call.product is None:
        return done.clean.dtype
    return call.product[0].dtype
