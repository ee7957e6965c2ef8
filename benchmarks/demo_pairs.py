"""What `auto` does to the tail, and how far that scatters: pairs of the demo, `none` and `auto`.

Each pair has arrivals, faults and a killed worker of its own; who goes first alternates, because a
shared machine is not the same for long. One run has ten queries above its p99 in `killed`, so a
ratio of two scatters by a tenth: the pairs say by how much, and all queries together what is left.

    .venv/bin/python benchmarks/demo_pairs.py out/demo --out docs/results/demo-pairs.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from proa.demo.records import BASELINE, HERO, Report
from proa.demo.scenario import Scenario, make_scenario
from proa.demo.serving import play
from proa.demo.verdict import GAP_RATIO_MAX, HARD, P50_RATIO_MAX
from proa.load import quantile

FIRST_SEED = 100  # the demo's own has no part in it
RESAMPLES = 10_000


def scenario_of(seed: int) -> Scenario:
    """The demo's scenario with another seed and the two policies alone."""
    drawn = make_scenario(seed=seed, quick=False)
    chosen = [one for one in drawn.contenders if one.name in (BASELINE, HERO)]
    return replace(drawn, contenders=chosen if seed % 2 else chosen[::-1])


def row(report: Report, phase: str) -> dict[str, Any]:
    """One phase of a pair: both gaps, and what `auto` is against `none`."""
    hero, base = report.run(HERO, phase), report.run(BASELINE, phase)
    return {
        "gap_ms": {run.policy: round(run.gap_ms, 2) for run in (base, hero)},
        "gap_ratio": round(hero.gap_ms / base.gap_ms, 3),
        "p50_ratio": round(hero.p50_ms / base.p50_ms, 3),
        "failed": {run.policy: run.failed for run in (base, hero)},
        "wrong": base.wrong + hero.wrong,
    }


def summary(reports: Sequence[Report], phase: str) -> dict[str, Any]:
    """All pairs of a phase: their ratios, and the ratio of the gaps over all queries."""
    rows = [row(report, phase) for report in reports]
    gaps = np.array([one["gap_ratio"] for one in rows])
    means = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(axis=1)
    p50s, gap_ms = {}, {}
    for policy in (BASELINE, HERO):
        pooled = np.concatenate([report.latencies_ms(policy, phase) for report in reports])
        p50s[policy] = quantile(pooled, 0.50)
        gap_ms[policy] = quantile(pooled, 0.99) - p50s[policy]
    return {
        "gap_ratio_of_all": round(gap_ms[HERO] / gap_ms[BASELINE], 3),
        "p50_ratio_of_all": round(p50s[HERO] / p50s[BASELINE], 3),
        "gap_ratio_mean": round(float(gaps.mean()), 3),
        "gap_ratio_mean_95": [round(float(x), 3) for x in np.percentile(means, [2.5, 97.5])],
        "met": sum(one["gap_ratio"] <= GAP_RATIO_MAX for one in rows),
        "pairs": rows,
    }


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="where `proa demo` has left its model")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    console = Console(stderr=True)
    reports: list[Report] = []
    for seed in range(args.first_seed, args.first_seed + args.pairs):
        scenario = scenario_of(seed)
        reports.append(asyncio.run(play(scenario, args.demo / "digits.yaml", args.demo, console)))
        for phase in HARD:
            console.print(f"{seed} {phase}: {row(reports[-1], phase)}")
    limits = {"gap_ratio_max": GAP_RATIO_MAX, "p50_ratio_max": P50_RATIO_MAX}
    measured = {phase: summary(reports, phase) for phase in HARD}
    facts = reports[0].config.facts  # its seed is the first
    args.out.write_text(json.dumps({**facts, **limits, **measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
