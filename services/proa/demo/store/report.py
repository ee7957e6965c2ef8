"""The store demo's report: report.json with `runs`, report.html, report.svg, a terminal table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from proa.demo.store import charts, page
from proa.demo.store.arms import Played, differing
from proa.demo.store.plan import WORKERS, Plan
from proa.demo.store.records import Run, Story

__all__ = ["build", "print_table", "to_json", "write"]


def build(played: Sequence[Played], plan: Plan, facts: Mapping[str, Any]) -> Story:
    """played: the arms, the one without a failure first."""
    clean = played[0]
    runs = tuple(_run(one, clean, plan) for one in played)
    return Story(runs, tuple(played), plan, facts)


def _run(one: Played, clean: Played, plan: Plan) -> Run:
    total_s = one.steps[-1].at_s
    losses = one.losses()
    window = max(1, len(losses) // 10)
    return Run(
        arm=one.arm.name,
        label=one.arm.label,
        r=one.arm.r,
        steps=len(losses),
        steps_trained=len(one.steps),
        loss_first=float(np.mean(losses[:window])),
        loss_last=float(np.mean(losses[-window:])),
        train_s=total_s,
        examples_per_s=len(losses) * plan.batch * WORKERS / total_s,
        killed_s=one.killed_s,
        recovery_s=one.recovered_s,
        stall_s=charts.stall_s(one),
        lost_steps=len(one.steps) - len(losses),
        checkpoint_s=one.spent("checkpoint"),
        down_s=one.spent("down"),
        reload_s=one.spent("reload"),
        replay_s=one.spent("replay"),
        checkpoint_bytes=one.checkpoint_bytes,
        same_bytes=not differing(clean, one),
        same_losses=losses == clean.losses(),
        sha256=one.digest,
    )


def to_json(story: Story) -> dict[str, Any]:
    """What report.json holds: `runs`, `config`, and per arm its `steps` and `spans`."""
    return {
        "runs": [{k: _plain(v) for k, v in asdict(run).items()} for run in story.runs],
        "config": {**asdict(story.plan), **story.facts},
        "timelines": {
            one.arm.name: {
                "steps": [[s.number, round(s.at_s, 4), round(s.loss, 6)] for s in one.steps],
                "spans": [{k: _plain(v) for k, v in asdict(span).items()} for span in one.spans],
            }
            for one in story.played
        },
    }


def write(story: Story, out: Path) -> list[Path]:
    """report.json, report.html, report.svg and report-dark.svg in `out`."""
    contents = {
        "report.json": (json.dumps(to_json(story), indent=1, allow_nan=False) + "\n").encode(),
        "report.html": page.page(story).encode(),
        "report.svg": charts.draw(story, "light", "svg"),
        "report-dark.svg": charts.draw(story, "dark", "svg"),
    }
    for name, content in contents.items():
        (out / name).write_bytes(content)
    return [out / name for name in contents]


def print_table(story: Story, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(page.COLUMNS):
        table.add_column(name, justify="right" if index else "left", no_wrap=bool(index))
    for run in story.runs:
        table.add_row(run.arm, *page.cells(run)[1:])
    console.print(table)


def _plain(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
