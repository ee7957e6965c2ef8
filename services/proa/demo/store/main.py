"""`proa demo store`: three trainings, and what the death of a shard did to each."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from proa.demo.store import report
from proa.demo.store.arms import Played, play
from proa.demo.store.plan import ARMS, Arm, Plan, make_plan
from proa.demo.store.records import Story

COLUMNS = 116


def main(*, quick: bool, out: Path, seed: int, json: bool) -> int:
    """Run the demo; the exit code: 1 if an arm did not end with the bytes of the one without a
    failure. The report is left in `out`."""
    console = Console(stderr=json)
    if not console.is_terminal:
        console = Console(stderr=json, width=COLUMNS)
    out.mkdir(parents=True, exist_ok=True)
    story = asyncio.run(tell(make_plan(seed=seed, quick=quick), ARMS, out, console))
    paths = report.write(story, out)
    if json:
        sys.stdout.write(jsonlib.dumps(report.to_json(story)) + "\n")
    else:
        report.print_table(story, console)
        console.print(f"picture and timeline: {paths[1]}")
    return 0 if all(run.same_bytes and run.same_losses for run in story.runs) else 1


async def tell(plan: Plan, arms: Sequence[Arm], out: Path, console: Console) -> Story:
    """Play the arms one after the other. Errors: ProaError."""
    started, load = time.monotonic(), os.getloadavg()[0]
    played: list[Played] = []
    with (out / "processes.log").open("w", encoding="utf-8") as log:
        for number, arm in enumerate(arms, 1):
            console.print(f"[bold]{number}/{len(arms)}[/] {arm.label} …")

            def sink(name: str, line: str, arm: Arm = arm) -> None:
                log.write(f"{arm.name} | {name} | {line}\n")

            played.append(await play(arm, plan, out, sink))
    facts = {
        **_versions(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    return report.build(played, plan, facts)


def _versions() -> Mapping[str, Any]:
    names = ("proa", "torch", "numpy", "redis", "grpcio")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
