"""Probes against observations: what was found, and whether it was tolerable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proa_chaos.experiment import PHASES, Experiment, Probe
from proa_chaos.measures import ERRORS, RECOVERY_S, Observations, Sample, statuses
from proa_chaos.store.measures import STORE_LATE


@dataclass(frozen=True)
class Finding:
    """A probe, what was measured (None: nothing to measure), and whether that was tolerable."""

    probe: Probe
    value: float | None
    met: bool
    text: str


def judge(probe: Probe, seen: Observations) -> Finding:
    """The probe over its phase."""
    if probe.measure == ERRORS:
        return _judge_statuses(probe, seen.of(probe.phase))
    value = seen.measure(probe.measure, probe.phase)
    if probe.relative_to is None:
        return _judge_number(probe, value, "" if value is None else f"{value:.4g}")
    base = seen.measure(probe.measure, probe.relative_to)
    if value is None or not base:
        return _judge_number(probe, None, "")
    return _judge_number(probe, value / base, f"{value / base:.3g} x ({value:.4g} / {base:.4g})")


def judge_window(probe: Probe, samples: Sequence[Sample], seen: Observations) -> Finding:
    """A guard's probe over the samples of its window."""
    if probe.measure == ERRORS:
        return _judge_statuses(probe, samples)
    value = seen.over(probe.measure, samples)
    return _judge_number(probe, value, "" if value is None else f"{value:.4g}")


def probes_of(experiment: Experiment, phase: str) -> list[Probe]:
    """The probes that can be judged once `phase` is over, and no earlier one."""
    late = STORE_LATE if experiment.workload.store else {RECOVERY_S}
    return [p for p in experiment.hypothesis if _last_phase(p, late) == phase]


def _last_phase(probe: Probe, late: Collection[str]) -> str:
    if probe.phase not in PHASES or probe.measure in late:
        return PHASES[-1]
    return max((probe.phase, probe.relative_to or probe.phase), key=PHASES.index)


def _judge_number(probe: Probe, value: float | None, text: str) -> Finding:
    if value is None:
        return Finding(probe, None, met=False, text="nothing to measure")
    met = (probe.at_most is None or value <= probe.at_most) and (
        probe.at_least is None or value >= probe.at_least
    )
    return Finding(probe, value, met, text)


def _judge_statuses(probe: Probe, samples: Sequence[Sample]) -> Finding:
    found = statuses(samples)
    strange = {name: count for name, count in found.items() if name not in (probe.allowed or ())}
    text = ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
    return Finding(probe, float(sum(strange.values())), met=not strange, text=text)
