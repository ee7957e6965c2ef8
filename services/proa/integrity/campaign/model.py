"""The campaign in a model's own layers, with its own activations: does the answer change?"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from proa.errors import InvalidRequest
from proa.integrity.campaign.answers import changes
from proa.integrity.campaign.cells import seed_of
from proa.integrity.campaign.counts import Counts
from proa.integrity.campaign.distributions import DTYPES
from proa.integrity.campaign.faults import ELEMENTS, FAULTS, possible
from proa.integrity.campaign.findings import ACTIVATIONS, Finding
from proa.integrity.campaign.inputs import batches_of, inputs_of, random_batches
from proa.integrity.campaign.journal import Journal
from proa.integrity.campaign.layers import Checked, Protected
from proa.integrity.campaign.machine import machine
from proa.integrity.campaign.operators import Result
from proa.integrity.campaign.report import Report
from proa.integrity.campaign.rows import ALWAYS, FINAL, MOMENTS
from proa.integrity.campaign.synthetic import JOURNAL_FILE, Tell
from proa.integrity.campaign.trial import STORED, Trial, Unit
from proa_kernels import Layer

FAULTS_OF = {"quick": 1_000, "full": 20_000}
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Model:
    """`sha256`: of the program's file. `names`: of its inputs, by a spec. `arrays`: inputs by
    name; None for random ones. `source`: where these are from, for the report."""

    name: str
    program: ExportedProgram
    sha256: str
    names: tuple[str, ...] = ()
    arrays: Arrays | None = None
    source: str = ""


def run_model(
    model: Model,
    out: Path,
    *,
    size: str = "quick",
    faults: int | None = None,
    layers: Sequence[str] = (),
    seed: int = 0,
    command: str = "",
    tell: Tell = lambda _done, _all, _what: None,
) -> Report:
    """Faults in the checked layers of `model`, one in each run of a batch; what is left of them
    by the journal in `out`.

    `faults`: about so many, spread over layers, sites and kinds (default: by `size`). `layers`:
    names of the coverage report, default all. Errors: InvalidRequest (unknown layer, inputs that
    do not fit, a protected program, another run's journal), ProgramRefused.
    """
    wanted = faults or FAULTS_OF[size]
    campaign = _Campaign(model, seed)
    chosen = campaign.chosen(layers)
    run = {
        "campaign": "model", "program": model.sha256, "inputs": _digest(model), "faults": wanted,
        "layers": [campaign.layers[at].layer for at in chosen], "seed": seed,
    }  # fmt: skip
    with Journal(out / JOURNAL_FILE, run) as journal:
        findings = campaign.clean()
        units, each = campaign.units(chosen, wanted)
        for done, unit in enumerate(units):
            layer = campaign.layers[unit.layer].layer
            tell(done, len(units), f"{layer} {unit.site} {unit.fault}")
            if unit.name not in journal.done:
                journal.add(unit.name, campaign.run(unit, each))
            findings.append(campaign.finding(unit, journal.done[unit.name]))
    about = {
        "command": command, "model": f"{model.name}, sha256 {model.sha256[:12]}",
        "inputs": model.source or f"random, seed {seed}: no real activations",
        "layers": f"{len(chosen)} of {len(campaign.layers)} checked,"
        f" {len(campaign.unchecked)} not checked",
        "faults": f"{sum(one.counts.injected for one in findings):,}", "seed": seed, **machine(),
    }  # fmt: skip
    return Report({**about, **campaign.unreached(chosen)}, findings)


class _Campaign:
    """The protected program, its batches and their clean answers."""

    def __init__(self, model: Model, seed: int) -> None:
        self._seed = seed
        inputs = inputs_of(model.program, model.names)
        if model.arrays is None:
            self._batches = random_batches(inputs, seed)
        else:
            self._batches = batches_of(inputs, model.arrays)
        self._protected = Protected(model.program)
        self.layers = self._protected.coverage.checked
        self.unchecked = self._protected.coverage.unchecked
        try:
            self._clean = [self._protected.run(batch) for batch in self._batches]
        except RuntimeError as exc:
            raise InvalidRequest(f"the program does not run on its inputs: {exc}") from exc
        self._products = self._protected.products(self._batches[0])

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Indices of the layers of those names. Raises InvalidRequest."""
        known = [layer.layer for layer in self.layers]
        for name in names:
            if name not in known:
                missed = {layer.layer: layer.reason for layer in self.unchecked}
                why = f"is not checked: {missed[name]}" if name in missed else "is not there"
                raise InvalidRequest(f"layer {name!r} {why}; checked are {', '.join(known)}")
        return [at for at, name in enumerate(known) if not names or name in names]

    def unreached(self, chosen: Sequence[int]) -> dict[str, str]:
        """For the report: layers whose operators hand nothing to the injection hook."""
        names = [self.layers[at].layer for at in chosen if not self._products[at]]
        return {"no injection": ", ".join(names)} if names else {}

    def clean(self) -> list[Finding]:
        """Checks of undisturbed batches, by layer."""
        found = []
        for at, layer in enumerate(self.layers):
            counts = Counts()
            for answers in self._clean:
                verdict = answers.layers[at]
                counts.add(
                    Counts(
                        clean_checks=verdict.checks,
                        false_positives=verdict.alarms,
                        cleared=verdict.cleared,
                        worst_ratio=verdict.ratio,
                    )
                )
            found.append(_finding(layer, "clean", "none", FINAL, counts))
        return found

    def units(self, chosen: Sequence[int], faults: int) -> tuple[list[Unit], int]:
        """Where and what, and how many of each; a choice where there are more than `faults`."""
        found = [unit for at in chosen if self._products[at] for unit in self._units(at)]
        if not found:
            raise InvalidRequest("no chosen layer has an operator with an injection hook")
        if len(found) > faults:
            dice = random.Random(self._seed)  # noqa: S311  # a choice, not a secret
            found = [found[at] for at in sorted(dice.sample(range(len(found)), faults))]
        return found, max(1, faults // len(found))

    def _units(self, at: int) -> list[Unit]:
        call = self._look(at)
        units = [Unit(at, "accumulator", fault, FINAL) for fault in FAULTS]
        if call.product is not None:
            units += [Unit(at, "accumulator", fault, when) for when in MOMENTS for fault in FAULTS]
            for site in ("operand", "operand-weight"):
                units += [Unit(at, site, fault, when) for when in MOMENTS for fault in ELEMENTS]
        stored = {"weight": "weight", **STORED}
        for argument, site in stored.items():
            value = call.args.get(argument)
            if isinstance(value, torch.Tensor):
                units += [
                    Unit(at, site, fault, ALWAYS)
                    for fault in ELEMENTS
                    if possible(fault, value.dtype)
                ]
        return units + [Unit(at, "output", fault, FINAL) for fault in ELEMENTS]

    def _look(self, at: int) -> Checked:
        found: list[Checked] = []

        def act(call: Checked) -> Result:
            found.append(call)
            return call()

        self._protected.run(self._batches[0], at, act)
        return found[0]

    def run(self, unit: Unit, each: int) -> dict[str, Any]:
        """`each` faults of a unit: counts, and those that are critical."""
        dice = torch.Generator().manual_seed(seed_of(self._seed, unit.name))
        counts, critical = Counts(), []
        for _ in range(each):
            which = int(torch.randint(len(self._batches), (), generator=dice))
            trial = Trial(unit, self._products[unit.layer], dice)
            answers = self._protected.run(self._batches[which], unit.layer, trial)
            changed = changes(self._clean[which], answers)
            detected = answers.verdict.alarms > 0
            trial.count(counts, answers, changed is not None)
            if changed is not None and not detected:
                layer = self.layers[unit.layer]
                critical.append(self._describe(layer, unit, trial, which, changed))
        return {"counts": counts.to_dict(), "critical": critical}

    def _describe(
        self, layer: Layer, unit: Unit, trial: Trial, which: int, changed: Mapping[str, Any]
    ) -> dict[str, Any]:
        first = which * len(self._batches[0][0])
        return {
            "layer": layer.layer, "op": layer.op, "site": unit.site, "fault": unit.fault,
            "moment": unit.moment, "row": trial.row, "column": trial.column, "bits": trial.bits,
            **changed, "input": first + int(changed["input"]),
        }  # fmt: skip

    def finding(self, unit: Unit, found: Mapping[str, Any]) -> Finding:
        layer = self.layers[unit.layer]
        counts = Counts.of(dict(found["counts"]))
        return _finding(layer, unit.site, unit.fault, unit.moment, counts, found["critical"])


def _finding(
    layer: Layer,
    site: str,
    fault: str,
    moment: str,
    counts: Counts,
    critical: Sequence[Mapping[str, Any]] = (),
) -> Finding:
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return Finding(
        op=layer.op,
        scheme=layer.scheme,
        dtype=names.get(layer.dtype, layer.dtype),
        distribution=ACTIVATIONS,
        site=site,
        fault=fault,
        moment=moment,
        inner=math.prod(layer.weight[1:]) if layer.weight else 0,
        counts=counts,
        layer=layer.layer,
        critical=critical,
    )


def _digest(model: Model) -> str:
    """Tells one set of inputs from another."""
    if model.arrays is None:
        return "random"
    digest = hashlib.sha256()
    for name, array in sorted(model.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
