"""What became of the requests, in numbers that a hypothesis can speak about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from proa.load import quantile
from proa_chaos.experiment import ALL

RECONSTRUCTED = "reconstructed"
ERRORS = "errors"
QUARANTINED = "quarantined"
REPAIRED = "repaired"
RECOVERY_S = "recoveryS"


@dataclass(frozen=True)
class Sample:
    """One request. at_s: when it was meant to leave, from the start of the run.

    latency_s: from then on. status: of the failure, empty if answered. wrong: an answer that is not
    marked reconstructed and yet differs from the reference. right: its arg-max is the label's, or
    the reference's. repaired: the worker found a wrong product in it, and made it right.
    """

    phase: str
    at_s: float
    latency_s: float
    source: str = ""
    status: str = ""
    error: str = ""
    wrong: bool = False
    right: bool = False
    repaired: bool = False

    @property
    def ok(self) -> bool:
        return not self.status


Measure = Callable[[Sequence[Sample], float], float | None]


@dataclass
class Observations:
    """What was seen so far. recovery_s: from the end of the faults until all was ready again."""

    deadline_s: float
    samples: list[Sample] = field(default_factory=list)
    recovery_s: float | None = None

    measures: ClassVar[Mapping[str, Measure]] = {}
    columns: ClassVar[tuple[str, ...]] = ()
    """Measures that a report shows of every phase."""
    word: ClassVar[str] = "request"
    """What a sample is."""
    legend: ClassVar[tuple[tuple[str, str], ...]] = ()
    """What the dots of a report's picture are, by the name of their colour."""

    def of(self, phase: str) -> list[Sample]:
        """The samples of a phase, or of all."""
        return [s for s in self.samples if phase in (ALL, s.phase)]

    def measure(self, name: str, phase: str) -> float | None:
        """A measure of a phase; None where there is nothing to measure."""
        if name == RECOVERY_S:
            return self.recovery_s
        return self.over(name, self.of(phase))

    def over(self, name: str, samples: Sequence[Sample]) -> float | None:
        """One of `measures` over `samples`; a failed request waited for its deadline."""
        value = self.measures[name](samples, self.deadline_s)
        return None if value is None or math.isnan(value) else value


def statuses(samples: Sequence[Sample]) -> Mapping[str, int]:
    """How many requests failed with each status."""
    return dict(sorted(Counter(s.status for s in samples if not s.ok).items()))


def sources(samples: Sequence[Sample]) -> Mapping[str, int]:
    """How many requests were answered by each source."""
    return dict(sorted(Counter(s.source for s in samples if s.ok).items()))


def _latency_ms(share: float) -> Measure:
    def find(samples: Sequence[Sample], deadline_s: float) -> float:
        return 1e3 * quantile([s.latency_s if s.ok else deadline_s for s in samples], share)

    return find


def _count(of: Callable[[Sample], bool]) -> Measure:
    return lambda samples, _: float(sum(map(of, samples)))


def _percent(of: Callable[[Sample], bool], among: Callable[[Sample], bool]) -> Measure:
    def find(samples: Sequence[Sample], _: float) -> float | None:
        chosen = [s for s in samples if among(s)]
        return 100.0 * sum(map(of, chosen)) / len(chosen) if chosen else None

    return find


def _any(_: Sample) -> bool:
    return True


def _failed(sample: Sample) -> bool:
    return not sample.ok


def _answered(sample: Sample) -> bool:
    return sample.ok


def _reconstructed(sample: Sample) -> bool:
    return sample.ok and sample.source == RECONSTRUCTED


def _redundant(sample: Sample) -> bool:
    return sample.ok and sample.source not in ("", "worker")


def _accuracy(samples: Sequence[Sample], _: float) -> float | None:
    answered = [s for s in samples if s.ok]
    return sum(s.right for s in answered) / len(answered) if answered else None


def nothing(_samples: Sequence[Sample], _deadline_s: float) -> None:
    """Of what the run as a whole tells, not its requests."""


COMMON: Mapping[str, Measure] = {
    "p50Ms": _latency_ms(0.50),
    "p99Ms": _latency_ms(0.99),
    "p999Ms": _latency_ms(0.999),
    "maxMs": _latency_ms(1.0),
    "sent": _count(_any),
    "failed": _count(_failed),
    "failedPercent": _percent(_failed, _any),
    ERRORS: _count(_failed),
    RECOVERY_S: nothing,
}
SERVING_MEASURES: Mapping[str, Measure] = {
    **COMMON,
    "wrong": _count(lambda s: s.wrong),
    "wrongPercent": _percent(lambda s: s.wrong, _answered),
    "accuracy": _accuracy,
    "reconstructed": _count(_reconstructed),
    "reconstructedPercent": _percent(_reconstructed, _answered),
    "redundant": _count(_redundant),
    "redundantPercent": _percent(_redundant, _answered),
    REPAIRED: _count(lambda s: s.repaired),
    "repairedPercent": _percent(lambda s: s.repaired, _answered),
    QUARANTINED: nothing,
}


@dataclass
class ServingObservations(Observations):
    """Of a model. quarantined: so many workers were in quarantine at the end of each phase."""

    quarantined: dict[str, int] = field(default_factory=dict)

    measures = SERVING_MEASURES
    columns = ("sent", "failed", "p50Ms", "p99Ms", "maxMs", "accuracy", "wrong", "reconstructed")
    legend = (
        ("worker", "worker"),
        ("reconstructed", "reconstructed"),
        ("redundant", "retry, replica, hedge"),
        ("bad", "failed (at its deadline) or wrong"),
    )

    def measure(self, name: str, phase: str) -> float | None:
        if name == QUARANTINED:
            found = [n for of, n in self.quarantined.items() if phase in (ALL, of)]
            return float(max(found)) if found else None
        return super().measure(name, phase)
