"""What the demo promises of `auto`, measured: met or missed, with the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from proa.demo.records import Report, Run

GAP_RATIO_MAX = 0.8
P50_RATIO_MAX = 1.1
HARD = ("slow", "killed")
TAIL_MIN = 5  # requests above p99, below which a gap says little


@dataclass(frozen=True)
class Promise:
    """One promise: what was measured, the limit, and whether it was met."""

    what: str
    measured: str
    limit: str
    met: bool


def promises(report: Report) -> list[Promise]:
    """The promises of the hero policy against the baseline, in the phases `slow` and `killed`."""
    hero, baseline = report.config.hero, report.config.baseline
    found: list[Promise] = []
    for phase in HARD:
        found += _of_phase(report.run(hero, phase), report.run(baseline, phase))
    reconstructed = report.run(hero, "slow").answers.get("reconstructed", 0)
    wrong = sum(run.wrong for run in report.runs)
    return [
        *found,
        Promise("slow: reconstructed answers", str(reconstructed), "at least 1", reconstructed > 0),
        Promise("wrong answers, all policies", str(wrong), "0", wrong == 0),
    ]


def caution(report: Report) -> str | None:
    """What to say of gaps that stand on too few requests; None: they do not."""
    sent = min(report.run(report.config.hero, phase).sent for phase in HARD)
    slowest = max(1, sent // 100)
    if slowest >= TAIL_MIN:
        return None
    return f"a gap of {sent} requests stands on the slowest {slowest}: too few to judge"


def _of_phase(hero: Run, baseline: Run) -> list[Promise]:
    gap = hero.gap_ms / baseline.gap_ms
    p50 = hero.p50_ms / baseline.p50_ms
    return [
        Promise(f"{hero.phase}: failed requests", str(hero.failed), "0", hero.failed == 0),
        _ratio(f"{hero.phase}: gap against {baseline.policy}", gap, GAP_RATIO_MAX),
        _ratio(f"{hero.phase}: p50 against {baseline.policy}", p50, P50_RATIO_MAX),
    ]


def _ratio(what: str, ratio: float, limit: float) -> Promise:
    return Promise(what, f"{ratio:.2f}x", f"at most {limit:g}x", ratio <= limit)
