"""The oracle's books about one schedule: what was sent where, what answered, who waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from proa.dispatch import actions as ac
from proa.dispatch import events as ev

# Before so many answers nobody knows how long one takes.
ANSWERS_MIN, MARGIN = 20, 1.1


@dataclass
class Seen:
    """Filled by `Schedule` from events and actions alone."""

    settled: Counter[int] = field(default_factory=Counter)
    released: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    answered_ok: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    first_worker: dict[int, ev.WorkerJoined] = field(default_factory=dict)
    outstanding: dict[int, tuple[str, ac.Send | ac.SendParity]] = field(default_factory=dict)
    rows_ok: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    row_domains: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    decodes: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    sends: Counter[int] = field(default_factory=Counter)
    tried: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    by_source: Counter[str] = field(default_factory=Counter)
    sent_at: dict[int, float] = field(default_factory=dict)
    first_sent_at: dict[int, float] = field(default_factory=dict)
    slow_at: dict[str, float] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    frontends: int = 1
    exact_s: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    answered_while_draining: int = 0
    drills: Counter[str] = field(default_factory=Counter)
    tied: dict[int, int] = field(default_factory=dict)
    taken_back: int | None = None
    ties: Counter[str] = field(default_factory=Counter)

    def running(self, worker: str) -> int:
        """How many attempts run on a worker."""
        return sum(1 for where, _ in self.outstanding.values() if where == worker)

    def first_at(self, worker: str) -> int:
        """The attempt that has been longest at a worker that runs something."""
        return next(one for one, (where, _) in self.outstanding.items() if where == worker)

    def begun(self, places: int) -> list[int]:
        """The tied queries that do not wait any longer at a worker with so many places."""
        found: list[int] = []
        for query, attempt in self.tied.items():
            host = self.outstanding[attempt][0]
            there = [one for one, (where, _) in self.outstanding.items() if where == host]
            if there.index(attempt) < places:
                found.append(query)
        return found

    def is_too_late(self, left_s: float, *, waited: bool) -> bool:
        """Whether there was reason to refuse a query, with so much time left, that has waited or
        has just arrived; judged by the slowest answer, and for the latter by one free place."""
        self.refused["waited" if waited else "arrived"] += 1
        open_ = len(self.queued) + len(self.first_worker)
        bound_s = max(self.exact_s, default=0.0) * (1.0 if waited else MARGIN * (1 + open_))
        return len(self.exact_s) >= ANSWERS_MIN and left_s < bound_s

    def redundant(self, *, copies_only: bool) -> int:
        """How many attempts run that `none` would not make."""
        copies = (ac.Source.REPLICA, ac.Source.HEDGE)
        return sum(
            not copies_only if isinstance(sent, ac.SendParity) else sent.source in copies
            for _, sent in self.outstanding.values()
        )
