"""The workers as the engine sees them, and the picker.

The picker takes the idle worker that was fast recently: an exponentially decaying latency score
(time constant 0.5 s, policies table, section 2). An error scores as a very slow answer, so a worker
that fails fast is not rewarded for it. Where others use the workers too, one that seems idle may be
busy: its share of foreign load counts as that share of a median computation to wait for, and each
frontend prefers workers of its own, so that they meet only where one of them has more to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from proa.dispatch.events import DEPLOYED, PARITY

SCORE_DECAY_S = 0.5
ERROR_FACTOR = 10.0
ERRORS_IN_ROW_MAX = 3
# News of foreign load is old after this. Much longer than the score's: it is an average already,
# and a frontend with little traffic hears of it rarely.
LOAD_DECAY_S = 10.0
# A worker that another frontend prefers counts as this many medians slower. Simulated: 12 workers,
# four frontends, 30 % of the time used for queries, parity: p50 23 ms instead of 29, p99 74 instead
# of 69.
AWAY_MEDIANS = 1.0
# So many workers a frontend prefers at least: the members of a group need domains of their own.
HOME_MIN = 3
# A worker this share of the median slower than it, lately, is likely to be late again.
SLOW_MEDIANS = 0.25


@dataclass(slots=True)
class Worker:
    """One worker. `running`: attempt id -> time it was sent, oldest first. `straggled`: its last
    answer to a query was late, and those of others were not; `avoided`: queries have waited rather
    than go there since."""

    id: str
    domain: str
    package: str
    roles: frozenset[str]
    trusted: bool = True
    draining: bool = False
    running: dict[int, float] = field(default_factory=dict)
    excess_s: float = 0.0
    scored_at: float = 0.0
    turn: int = 0
    answered: int = 0
    straggled: bool = False
    avoided: bool = False
    errors: int = 0
    errors_in_row: int = 0
    latency_s: float = 0.0
    load: float = 0.0
    load_at: float = 0.0

    @property
    def open(self) -> bool:
        """Whether new work may go there."""
        return self.trusted and not self.draining

    @property
    def since(self) -> float:
        """Since when the oldest of what it runs has been there; it runs something."""
        return next(iter(self.running.values()))

    def score_s(self, now: float) -> float:
        """What it was slower than the median lately, decayed; 0 for a good or unknown one."""
        return self.excess_s * math.exp(-(now - self.scored_at) / SCORE_DECAY_S)

    def note(self, excess_s: float, now: float) -> None:
        """Take in how much slower than the median an answer was, in seconds."""
        self.excess_s = max(0.0, 0.5 * self.score_s(now) + 0.5 * excess_s)
        self.scored_at = now

    def note_load(self, load: float, now: float) -> None:
        """Others use this share of its time."""
        self.load = load
        self.load_at = now

    def foreign(self, now: float) -> float:
        """The share of its time that others use, 0 to 1, as far as is known."""
        return self.load * math.exp(-(now - self.load_at) / LOAD_DECAY_S)

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

    def __init__(self, *, inflight_max: int, median_s: Callable[[], float] = lambda: 0.0) -> None:
        self._workers: dict[str, Worker] = {}
        self._inflight_max = inflight_max
        self._median_s = median_s
        self._turn = 0
        self._frontends = (1, 0)
        self._home: set[str] = set()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker: str) -> Worker | None:
        """The worker of that name, if it is known."""
        return self._workers.get(worker)

    def join(self, worker: Worker) -> None:
        """Add `worker`, or trust it again."""
        self._workers[worker.id] = worker
        self._settle_home()

    def remove(self, worker: str) -> Worker | None:
        """Take a worker out."""
        found = self._workers.pop(worker, None)
        self._settle_home()
        return found

    def rotate(self, count: int, index: int) -> None:
        """`count` frontends use the workers; this one, number `index`, prefers its part of them."""
        self._frontends = (count, index)
        self._settle_home()

    def _settle_home(self) -> None:
        """An equal part of the workers by name, which all frontends see alike, from a start of our
        own; the parts overlap where there are many frontends."""
        count, index = self._frontends
        names = sorted(self._workers)
        first = index * len(names) // count
        size = max(HOME_MIN, math.ceil(len(names) / count))
        self._home = set((names[first:] + names[:first])[:size])

    def ready(self, role: str = DEPLOYED) -> int:
        """How many workers with `role` take work."""
        return sum(1 for w in self if w.open and role in w.roles)

    def idle(self, role: str = DEPLOYED) -> int:
        """How many of them run nothing at all."""
        return sum(1 for w in self if w.open and role in w.roles and not w.running)

    def has_place(self) -> bool:
        """Whether a query could be sent now."""
        return bool(self._free())

    def fastest_free(self, now: float) -> Worker | None:
        """The one that was fastest lately of those that a query could be sent to now."""
        return min(self._free(), key=lambda w: w.score_s(now), default=None)

    def _free(self) -> list[Worker]:
        limit = self._inflight_max
        return [w for w in self if w.open and DEPLOYED in w.roles and len(w.running) < limit]

    def full(self) -> list[Worker]:
        """Those that serve queries and have no place free, but where none waits yet."""
        limit = self._inflight_max
        return [w for w in self if w.open and DEPLOYED in w.roles and len(w.running) == limit]

    def has_begun(self, worker: Worker, attempt: int) -> bool:
        """Whether `attempt` has a place at `worker`, and does not wait for one."""
        return attempt in islice(worker.running, self._inflight_max)

    def foreign(self, now: float) -> float:
        """How many of the workers that serve queries are busy for others, as far as is known; a
        fraction, since it is an average."""
        return sum(w.foreign(now) for w in self if w.open and DEPLOYED in w.roles)

    def domains(self, role: str | None = None, package: str | None = None) -> set[str]:
        """The failure domains of the workers that take work (with that role, of that package)."""
        return {
            w.domain
            for w in self
            if w.open and (role is None or role in w.roles) and package in (None, w.package)
        }

    def has_parity(self) -> bool:
        """Whether any worker can take a parity row."""
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
            if w.open
            and role in w.roles
            and len(w.running) < limit
            and w.domain not in avoid
            and package in (None, w.package)
        ]
        median_s = self._median_s()

        def delay_s(worker: Worker) -> float:
            away = 0.0 if worker.id in self._home else AWAY_MEDIANS
            return worker.score_s(now) + (away + worker.foreign(now)) * median_s

        # Least loaded first, then recently fast, then the one that has waited longest for a turn.
        return min(fits, key=lambda w: (len(w.running), delay_s(w), w.turn), default=None)

    def start(self, worker: Worker, attempt: int, now: float) -> None:
        """`attempt` runs on `worker` from now on, or waits there as the only one."""
        assert len(worker.running) <= self._inflight_max
        worker.running[attempt] = now
        self._turn += 1
        worker.turn = self._turn
