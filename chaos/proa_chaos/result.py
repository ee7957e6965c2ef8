"""What came of a run: verdict, findings, what was done, what was seen."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from proa_chaos.experiment import Experiment
from proa_chaos.hypothesis import Finding
from proa_chaos.measures import Observations
from proa_chaos.plan import Hit


class Phase(enum.Enum):
    """Litmus's phases of a run that has ended."""

    COMPLETED = "Completed"
    ABORTED = "Aborted"


class Verdict(enum.Enum):
    """Litmus's verdicts of a run that has ended."""

    PASS = "Pass"  # noqa: S105 - not a password
    FAIL = "Fail"
    STOPPED = "Stopped"


@dataclass
class Done:
    """A hit as it was done: seconds from the start of the run, and what went wrong with it."""

    hit: Hit
    start_s: float
    end_s: float | None = None
    error: str = ""
    end_error: str = ""


@dataclass(frozen=True)
class Steady:
    """A look at the steady state: met when all was ready and every probe of it was tolerable."""

    met: bool
    waiting_for: tuple[str, ...]
    findings: tuple[Finding, ...]
    at_s: float


@dataclass
class Result:
    """Filled in while the run goes on. Times in seconds from its start; start, end: unix time.

    subject: what was asked. notes: what was found after the faults, a line each."""

    experiment: Experiment
    subject: str
    seed: int
    backend: str
    seen: Observations
    start_unix: float
    done: list[Done] = field(default_factory=list)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    before: Steady | None = None
    after: Steady | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    phase: Phase = Phase.ABORTED
    verdict: Verdict = Verdict.STOPPED
    fail_step: str = ""
    duration_s: float = 0.0

    @property
    def success_percentage(self) -> float:
        """Litmus's probeSuccessPercentage: the share of the probes that were met."""
        count = len(self.experiment.hypothesis)
        return 100.0 * sum(finding.met for finding in self.findings) / count

    @property
    def as_expected(self) -> bool:
        return self.verdict.value == self.experiment.expected
