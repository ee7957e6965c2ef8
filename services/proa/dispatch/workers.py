"""The workers as the engine sees them, and the picker.

The picker takes the idle worker that was fast recently: an exponentially decaying latency score
(time constant 0.5 s, policies table, section 2). An error scores as a very slow answer, so a worker
that fails fast is not rewarded for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from proa.dispatch.events import DEPLOYED, PARITY

SCORE_DECAY_S = 0.5
ERROR_FACTOR = 10.0
ERRORS_IN_ROW_MAX = 3


@dataclass(slots=True)
class Worker:
    """One worker. `running`: attempt id -> time it was sent, oldest first."""

    id: str
    domain: str
    package: str
    roles: frozenset[str]
    trusted: bool = True
    running: dict[int, float] = field(default_factory=dict)
    excess_s: float = 0.0
    scored_at: float = 0.0
    turn: int = 0
    answered: int = 0
    errors: int = 0
    errors_in_row: int = 0
    latency_s: float = 0.0

    def score_s(self, now: float) -> float:
        """What it was slower than the median lately, decayed; 0 for a good or unknown one."""
        return self.excess_s * math.exp(-(now - self.scored_at) / SCORE_DECAY_S)

    def note(self, excess_s: float, now: float) -> None:
        """Take in how much slower than the median an answer was, in seconds."""
        self.excess_s = max(0.0, 0.5 * self.score_s(now) + 0.5 * excess_s)
        self.scored_at = now

    def note_answer(self, latency_s: float, median_s: float, now: float) -> None:
        """A good answer after `latency_s`."""
        self.answered += 1
        self.errors_in_row = 0
        self.latency_s = latency_s
        self.note(latency_s - median_s, now)

    def note_error(self, median_s: float, now: float) -> None:
        """A failed attempt: it scores as an answer ten medians late."""
        self.errors += 1
        self.errors_in_row += 1
        self.note(ERROR_FACTOR * median_s, now)


class WorkerTable:
    """All workers of one model."""

    def __init__(self, *, inflight_max: int) -> None:
        self._workers: dict[str, Worker] = {}
        self._inflight_max = inflight_max
        self._turn = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker: str) -> Worker | None:
        """The worker of that name, if it is known."""
        return self._workers.get(worker)

    def join(self, worker: Worker) -> None:
        """Add `worker`, or trust it again."""
        self._workers[worker.id] = worker

    def remove(self, worker: str) -> Worker | None:
        """Take a worker out."""
        return self._workers.pop(worker, None)

    def ready(self, role: str = DEPLOYED) -> int:
        """How many trusted workers have `role`."""
        return sum(1 for w in self if w.trusted and role in w.roles)

    def idle(self, role: str = DEPLOYED) -> int:
        """How many of them run nothing at all."""
        return sum(1 for w in self if w.trusted and role in w.roles and not w.running)

    def domains(self, role: str | None = None, package: str | None = None) -> set[str]:
        """The failure domains of the trusted workers (with that role, of that package)."""
        return {
            w.domain
            for w in self
            if w.trusted and (role is None or role in w.roles) and package in (None, w.package)
        }

    def has_parity(self) -> bool:
        """Whether any trusted worker can run a parity row."""
        return self.ready(PARITY) > 0

    def pick(
        self,
        role: str,
        now: float,
        *,
        avoid: Collection[str] = (),
        package: str | None = None,
        idle_only: bool = False,
    ) -> Worker | None:
        """The best worker with a free place and `role`, in none of the `avoid` domains."""
        limit = 1 if idle_only else self._inflight_max
        fits = [
            w
            for w in self
            if w.trusted
            and role in w.roles
            and len(w.running) < limit
            and w.domain not in avoid
            and package in (None, w.package)
        ]
        # Least loaded first, then recently fast, then the one that has waited longest for a turn.
        return min(fits, key=lambda w: (len(w.running), w.score_s(now), w.turn), default=None)

    def start(self, worker: Worker, attempt: int, now: float) -> None:
        """`attempt` runs on `worker` from now on."""
        assert len(worker.running) < self._inflight_max
        worker.running[attempt] = now
        self._turn += 1
        worker.turn = self._turn
