"""What became of training on a store, in numbers that a hypothesis can speak about."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proa_chaos.experiment import ALL
from proa_chaos.measures import COMMON, REPAIRED, Measure, Observations, Sample, nothing

RECOVERY = "recovery"
"""The phase of steps between the phases `during` and `after`."""


@dataclass(frozen=True)
class Step(Sample):
    """One step of a worker: rows pulled and compared, pushed, acknowledged. Or rows that were
    compared, all of them, at a certain time."""

    rows: int = 0
    rows_wrong: int = 0
    rows_lost: int = 0


def _rows(of: str) -> Measure:
    return lambda samples, _: float(sum(getattr(one, of, 0) for one in samples))


STORE_MEASURES: Mapping[str, Measure] = {
    **COMMON,
    "compared": _rows("rows"),
    "wrong": _rows("rows_wrong"),
    "lost": _rows("rows_lost"),
    # Of the run, or of a length of time: `StoreObservations.measure`.
    "stepsPerS": nothing,
    "stallMs": nothing,
    "rowsDecoded": nothing,
    "found": nothing,
    REPAIRED: nothing,
    "parityWrong": nothing,
}
STORE_LATE = frozenset({"recoveryS", "stallMs", "rowsDecoded", "found", REPAIRED, "parityWrong"})
"""Known when the run is over, and not before."""


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub found: rows that failed their crc, those of them that it repaired, and parity
    blocks that were not the sum of their data."""

    rows_found: int
    rows_repaired: int
    parity_wrong: int


@dataclass
class StoreObservations(Observations):
    """Of a store. later: comparisons of all rows. windows: begin and end of each phase, seconds of
    the run. rows_decoded: by all shards since the run began."""

    later: list[Step] = field(default_factory=list)
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows_decoded: int = 0
    scrubbed: Scrubbed | None = None

    measures = STORE_MEASURES
    word = "step"
    columns = ("sent", "failed", "p50Ms", "p99Ms", "maxMs", "stepsPerS", "wrong", "lost")
    legend = (("worker", "step"), ("bad", "failed (at its deadline), or rows that were wrong"))

    def measure(self, name: str, phase: str) -> float | None:
        match name:
            case "compared" | "wrong" | "lost":
                later = [one for one in self.later if phase in (ALL, one.phase)]
                return self.over(name, [*self.of(phase), *later])
            case "stepsPerS":
                return self._steps_per_s(phase)
            case "stallMs":
                return self._stall_ms(phase)
            case "rowsDecoded":
                return float(self.rows_decoded)
            case "found" | "repaired" | "parityWrong":
                return self._scrubbed(name)
        return super().measure(name, phase)

    def _scrubbed(self, name: str) -> float | None:
        found = self.scrubbed
        if found is None:
            return None
        numbers = {
            "found": found.rows_found,
            REPAIRED: found.rows_repaired,
            "parityWrong": found.parity_wrong,
        }
        return float(numbers[name])

    def _window(self, phase: str) -> tuple[float, float] | None:
        if phase != ALL:
            return self.windows.get(phase)
        times = list(itertools.chain.from_iterable(self.windows.values()))
        return (min(times), max(times)) if times else None

    def _steps_per_s(self, phase: str) -> float | None:
        window = self._window(phase)
        if window is None or window[1] <= window[0]:
            return None
        count = sum(window[0] <= at_s < window[1] for at_s in _acknowledged(self.samples))
        return count / (window[1] - window[0])

    def _stall_ms(self, phase: str) -> float | None:
        """The longest time without an acknowledged step, of those that touch the phase."""
        window, whole = self._window(phase), self._window(ALL)
        if window is None or whole is None:
            return None
        times = [whole[0], *_acknowledged(self.samples), whole[1]]
        gaps = [
            after - before
            for before, after in itertools.pairwise(sorted(times))
            if after > window[0] and before < window[1]
        ]
        return 1e3 * max(gaps, default=0.0)


def _acknowledged(samples: Sequence[Sample]) -> list[float]:
    return [one.at_s + one.latency_s for one in samples if one.ok]
