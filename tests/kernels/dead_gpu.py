"""Stands for the script's process of sections, whose GPU is lost at some of them.

`python dead_gpu.py OUT RUN SECTIONS`: within "networks" shape b ends it at once, as a broken driver
does; "smoke" finds its GPU gone; "campaign" stands still.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_abft.children import LOST
from gpu_abft.record import Lost, Record


def smoke(record: Record) -> Iterator[dict[str, int]]:
    with record.trying("smoke 1"):
        yield {"row": 1}
    record.alive = lambda: False
    with record.trying("smoke 2"):
        raise RuntimeError("an illegal memory access was encountered")


def networks(record: Record) -> None:
    shapes = record.found.setdefault("shapes", {})
    for key in "abc":
        if shapes.get(key, {}).get("run") == record.run:
            continue
        record.at(key)
        if key == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        shapes[key] = {"run": record.run, "base_us": 1.0}
        record.save()


def campaign(record: Record) -> None:
    record.save()
    signal.pause()


def main() -> int:
    out, run, sections = sys.argv[1:]
    record = Record(Path(out), time.monotonic() + 60.0, run=run)
    record.load()
    works = {"smoke": smoke, "networks": networks, "campaign": campaign}
    try:
        for name in sections.split(","):
            record.section(name, lambda name=name: works[name](record))
    except Lost:
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
