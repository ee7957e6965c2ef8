"""The sections of a run, in the order in which they are worked through."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from gpu_abft import correctness, layers, networks, precision, replays
from gpu_abft.record import Record
from gpu_abft.shapes import Layer

# Seconds that the networks leave to the sections after them, which are short.
RESERVE_S = 110.0
# Whether the kernels are right; what they cost; how much of what is wrong they find; what is left.
ORDER = (
    "smoke", "graphs", "emulated_times", "networks", "calibration", "emulated_errors",
    "emulated_special", "emulated_checked", "campaign", "rest",
)  # fmt: skip
# Those that hold on any device, at the interpreter's sizes.
ANYWHERE = (
    "smoke", "graphs", "networks", "calibration", "emulated_errors", "emulated_checked", "campaign",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What is asked for. `listed`: layers of which the file tells; `chosen`: those measured now."""

    device: str
    quick: bool
    listed: list[Layer]
    chosen: list[Layer]

    @property
    def scale(self) -> correctness.Scale:
        if self.device == "cpu":
            return correctness.TOY
        return correctness.QUICK if self.quick else correctness.FULL

    @property
    def place(self) -> layers.Place:
        dtype = torch.float16 if self.device == "cpu" else torch.bfloat16
        return layers.Place(self.device, dtype)


def section(name: str, run: Run, record: Record) -> None:
    """Works through one section. Raises Lost."""
    device, toy = run.device, run.device == "cpu"
    sizes = (4096,) if run.quick else (4096, 8192)
    works: dict[str, Callable[[], Any]] = {
        "smoke": lambda: correctness.smoke(device, record),
        "graphs": lambda: replays.graphs(device, record),
        "emulated_times": lambda: precision.times(sizes, 9, device, record),
        "networks": lambda: measure(run, record, 1.0 if toy else RESERVE_S),
        "calibration": lambda: correctness.calibration(device, run.scale, record),
        "emulated_errors": lambda: precision.errors(device, 64 if toy else 4096, record),
        "emulated_special": lambda: precision.special(device, record),
        "emulated_checked": lambda: precision.checked(device, 64 if toy else 2048, record),
        "campaign": lambda: correctness.campaign(device, run.scale, record),
        "rest": lambda: measure(run, record, 5.0),
    }
    record.section(name, works[name])


def measure(run: Run, record: Record, reserve_s: float) -> None:
    """Shapes until little time is left; rows and sums are saved with them."""
    for _ in layers.measured(run.chosen, record, run.place, reserve_s):
        if record.due:
            add_up(run, record)
            record.save()
    add_up(run, record)


def add_up(run: Run, record: Record) -> None:
    """Rows and networks of the shapes that the record has."""
    device = record.found["environment"]["device"]
    shapes = record.found.get("shapes", {})
    found = networks.results(run.listed, shapes, device)
    record.found["rows"], record.found["networks"] = found


def environment(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    found = {
        "device": "CPU interpreter", "torch": torch.__version__, "triton": triton.__version__,
        "python": sys.version.split()[0], "cores": os.cpu_count(),
    }  # fmt: skip
    if device == "cuda":
        one = torch.cuda.get_device_properties(0)
        found |= {
            "device": one.name, "capability": f"{one.major}.{one.minor}",
            "multiprocessors": one.multi_processor_count, "cuda": torch.version.cuda,
            "memory_gib": round(one.total_memory / 2**30, 1),
        }  # fmt: skip
    return found


def warm(run: Run, whole: bool, part: int, parts: int) -> int:
    """Every `parts`-th task from `part` on: compiles what the sections need. What fails here fails
    again there. Gives how many did."""
    record = Record(Path("unsaved"), math.inf)
    tasks = layers.warm_tasks(run.chosen)
    if whole:
        small = correctness.WARM
        for dtype in correctness.dtypes("cuda"):
            tasks.append(lambda d=dtype: list(correctness.calibration("cuda", small, record, d)))
            tasks.append(lambda d=dtype: list(correctness.campaign("cuda", small, record, d)))
        tasks += [
            lambda one=one: list(correctness.tried(one, "cuda"))
            for one in correctness.trials("cuda")
        ]
        tasks += [lambda one=one: precision.warm(one) for one in precision.PRODUCTS]
        tasks += [lambda one=one: one.call() for one in replays.operators("cuda")]
    for at, task in list(enumerate(tasks))[part::parts]:
        with record.trying(f"warm task {at}"):
            task()
    return len(record.found["errors"])
