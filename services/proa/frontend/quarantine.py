"""Which workers compute wrongly too often to be given work. No I/O, no clock of its own.

Faults are counted for each worker over a sliding window. At `after` of them the worker is in
quarantine, until a whole window has passed without another one, or until it has restarted. Never
are more than `percent_max` of a model's workers in quarantine, rounded down but at least one, and
never the last one that serves: a check that errs, or a bad program, must not take a model down. At
0 % nobody ever is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

# Faults remembered for each worker: what the reason counts to.
FAULTS_KEPT = 1000


class Ruling(Enum):
    """What follows from a fault."""

    NONE = "none"
    QUARANTINED = "quarantined"  # now, or already
    CAPPED = "capped"  # it ought to be, but too many are


@dataclass(frozen=True, slots=True)
class Limits:
    """`after`: faults within `window_s` that lead to quarantine; `percent_max`: of the workers."""

    after: int = 2
    window_s: float = 3600.0
    percent_max: float = 20.0

    def places(self, workers: int) -> int:
        """How many of so many workers may be in quarantine at once."""
        if self.percent_max <= 0 or workers < 2:
            return 0
        return min(max(1, int(workers * self.percent_max / 100)), workers - 1)


class Quarantine:
    """The faults of one model's workers, and who is out for them. Times are seconds of one clock.

    `before`: of the version of the model that this one takes over from.
    """

    def __init__(self, limits: Limits, before: Quarantine | None = None) -> None:
        self.limits = limits
        self._faults: dict[str, deque[float]] = {}
        self._held: dict[str, str] = {}
        if before is not None:
            self._take_over(before._faults, before._held)  # noqa: SLF001  # one of us

    def _take_over(self, faults: Mapping[str, Iterable[float]], held: Mapping[str, str]) -> None:
        self._faults = {name: deque(at, FAULTS_KEPT) for name, at in faults.items()}
        self._held = dict(held)

    def fault(
        self, worker: str, now: float, *, workers: int, others: int, package: str = ""
    ) -> Ruling:
        """`worker` computed wrongly. `workers`: of the model, this one included; `others`: how many
        serve beside it; `package`: what it hosts."""
        seen = self._faults.setdefault(worker, deque(maxlen=FAULTS_KEPT))
        seen.append(now)
        if worker in self._held:
            return Ruling.QUARANTINED
        if self.faults(worker, now) < self.limits.after:
            return Ruling.NONE
        if others < 1 or len(self._held) >= self.limits.places(workers):
            return Ruling.CAPPED
        self._held[worker] = package
        return Ruling.QUARANTINED

    def faults(self, worker: str, now: float) -> int:
        """Faults of `worker` within the window."""
        seen = self._faults.get(worker, ())
        return sum(1 for at in seen if now - at < self.limits.window_s)

    def holds(self, worker: str, now: float) -> bool:
        """Whether `worker` is in quarantine. Its time is over once its last fault is a window
        ago."""
        if worker in self._held and self.faults(worker, now) == 0:
            self.forget(worker)
        return worker in self._held

    def parole(self, worker: str) -> None:
        """Nobody else serves: let it. Its faults count on; the next may take it out again."""
        self._held.pop(worker, None)

    def forget(self, worker: str) -> None:
        """It restarted or left: whatever has its name now starts anew."""
        self._held.pop(worker, None)
        self._faults.pop(worker, None)

    @property
    def held(self) -> frozenset[str]:
        """Who is in quarantine; those whose time is over are in it until `holds` looked."""
        return frozenset(self._held)

    def package(self, worker: str) -> str:
        """What a worker in quarantine hosted when it got there."""
        return self._held.get(worker, "")

    def reason(self, worker: str, now: float) -> str:
        """Why it is out, for people: `2 faults in 60 min`."""
        count = self.faults(worker, now)
        text = f"{count}+" if count >= FAULTS_KEPT else str(count)
        return f"{text} fault{'s' * (count != 1)} in {self.limits.window_s / 60:g} min"
