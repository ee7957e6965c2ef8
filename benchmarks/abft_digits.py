"""The fault campaign in a real model with real activations, added to the results of the campaign.

A CNN is trained on scikit-learn's handwritten digits for some seconds, exported, and broken in its
own layers while it classifies digits that it never saw: which faults change an answer, and which of
those does no check find? The model's part of abft-campaign.md and .json is written anew; the part
of the synthetic matrices, which `proa abft campaign --size full` writes first, stays.

    .venv/bin/python benchmarks/abft_digits.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proa.integrity.campaign.counts import total
from proa.integrity.campaign.findings import brief
from proa.integrity.campaign.model import Model, run_model
from proa.integrity.campaign.report import Report, describe, drawn, json_lines
from proa.integrity.campaign.synthetic import one_thread
from proa.integrity.campaign.tables import Table, tables, with_interval
from proa.train import data, digits
from proa.train.distil import train_model
from proa.train.nets import build
from proa.train.program import export, predictor
from proa.worker.programs import load_exported

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
FILES = "abft-campaign"
HEADING = "## A real model"
EPOCHS, FAULTS, SEED = 40, 5_000, 0
LISTED_MAX = 40


def trained(folder: Path, epochs: int) -> tuple[Model, float]:
    """The model, its held-out digits as its inputs, and its accuracy on them."""
    split = data.digits()
    with digits.seeded(SEED):
        net = build("cnn", [digits.IMAGE.shape], [digits.LOGITS.shape], width=digits.WIDTH)
    recipe = replace(digits.MODEL, epochs=epochs, seed=SEED)
    train_model(net, split.train, split.validation, recipe, augment=data.augment)
    path = folder / "digits.pt2"
    export(net, [digits.IMAGE], digits.MAX_BATCH, path)
    seen = {digits.IMAGE.name: split.held_out.images}
    answers = predictor(net.eval(), [digits.IMAGE], [digits.LOGITS], batch=512)(seen)
    right = answers[digits.LOGITS.name].argmax(1) == split.held_out.labels
    program, sha256 = load_exported(path, None)
    source = f"{len(right)} digits of scikit-learn that no training saw"
    model = Model("digits CNN", program, sha256, (digits.IMAGE.name,), seen, source)
    return model, float(right.mean())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=FAULTS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are")
    args = parser.parse_args(argv)
    add(measure(args.epochs, args.faults), args.results)
    return 0


def measure(epochs: int, faults: int) -> Report:
    """Train, and break."""
    with tempfile.TemporaryDirectory() as name, one_thread():
        model, accuracy = trained(Path(name), epochs)
        report = run_model(
            model, Path(name), faults=faults, seed=SEED, command="benchmarks/abft_digits.py"
        )
    return Report({**report.about, "accuracy": f"{accuracy:.1%} of these digits"}, report.findings)


def add(report: Report, folder: Path) -> None:
    """Put the model's part in the place of an earlier one."""
    path = folder / f"{FILES}.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    cells = brief(report.findings)
    own = {cell["distribution"] for cell in cells}
    kept = [cell for cell in tree.pop("campaign") if cell["distribution"] not in own]
    tree["model"] = {
        "about": dict(report.about), "sites": _sites(report), "critical": list(report.critical),
    }  # fmt: skip
    path.write_text(json_lines({**tree, "campaign": [*kept, *cells]}), encoding="utf-8")
    page = path.with_suffix(".md")
    before = page.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[0]
    page.write_text(f"{before.rstrip()}\n\n{section(report)}", encoding="utf-8")


def _sites(report: Report) -> list[dict[str, Any]]:
    """What faults at each site did to the model's answers."""
    names = dict.fromkeys(one.site for one in report.findings if one.site != "clean")
    found = []
    for site in names:
        group = [one for one in report.findings if one.site == site]
        counts = total(one.counts for one in group)
        found.append({
            "site": site, "injected": counts.injected, "visible": counts.visible,
            "visible_detected": counts.visible_detected, "answers": counts.answers,
            "critical": sum(len(one.critical) for one in group),
        })  # fmt: skip
    return found


def section(report: Report) -> str:
    """The part of the page."""
    clean = total(one.counts for one in report.findings)
    lines = [HEADING, "", *(f"- {name}: {value}" for name, value in report.about.items())]
    lines += [f"- clean checks: {clean.clean_checks:,}, false positives: {clean.false_positives}"]
    note = (
        "Answers: faults that change the class of a digit where nothing is corrected; critical:"
        " those of them that no check found. An output is not looked at after its check, by design."
    )
    lines += ["", note, ""]
    lines += drawn(("site", "injected", "visible", "visible found %", "answers", "critical"), [
        (
            one["site"], f"{one['injected']:,}", f"{one['visible']:,}",
            with_interval(one["visible_detected"], one["visible"]), f"{one['answers']:,}",
            str(one["critical"]),
        )
        for one in _sites(report)
    ])  # fmt: skip
    layers = _layers(report)
    lines += ["", layers.note, "", *drawn(layers.columns, layers.rows)]
    listed = sorted(report.critical, key=lambda one: one["site"] == "output")
    lines += ["", "### Undetected and critical", ""]
    lines += [f"- {describe(one)}" for one in listed[:LISTED_MAX]] or ["None."]
    more = len(listed) - LISTED_MAX
    lines += [f"- and {more} more: see {FILES}.json"] if more > 0 else []
    return "\n".join(lines) + "\n"


def _layers(report: Report) -> Table:
    return next(table for table in tables(report.findings) if table.title == "Layers")


if __name__ == "__main__":
    sys.exit(main())
