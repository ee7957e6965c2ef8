"""The low-priority queue of redundant work, and the budgets that keep it harmless."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proa.dispatch.actions import Source

# How long the turns of frontends last that share what cannot be divided.
TURN_S = 1.0


@dataclass(frozen=True, slots=True)
class CopyWork:
    """Another attempt at a query: a replica or a hedge."""

    query: int
    source: Source
    index: int = 0


@dataclass(frozen=True, slots=True)
class ParityWork:
    """One parity row of a group."""

    group: int
    row: int


Work = CopyWork | ParityWork


class RedundantQueue:
    """Redundant work in order: hedges (their query is late already), then the rest by age.

    Bounded: at the limit the oldest work of the lowest order is dropped, which loses redundancy
    and nothing else.
    """

    def __init__(self, *, limit: int, on_drop: Callable[[Work], None]) -> None:
        self._hedges: dict[Work, None] = {}
        self._others: dict[Work, None] = {}
        self._limit = limit
        self._on_drop = on_drop

    def __len__(self) -> int:
        return len(self._hedges) + len(self._others)

    def __iter__(self) -> Iterator[Work]:
        yield from list(self._hedges)
        yield from list(self._others)

    def add(self, work: Work) -> None:
        """Queue `work`; at the limit the oldest goes."""
        hedge = isinstance(work, CopyWork) and work.source is Source.HEDGE
        (self._hedges if hedge else self._others)[work] = None
        if len(self) > self._limit:
            self.drop(next(iter(self._others or self._hedges)))

    def drop(self, work: Work) -> None:
        """Give `work` up."""
        self.take(work)
        self._on_drop(work)

    def take(self, work: Work) -> None:
        """Remove `work`, which is now running or no longer wanted."""
        self._hedges.pop(work, None)
        self._others.pop(work, None)


def redundant_limit(*, ready: int, idle_reserve: int, queue_depth: int) -> int:
    """How many workers may run redundant work: all but the reserve when nothing waits, none once
    as many queries wait as there are workers. Redundancy must never cause the overload."""
    if ready <= 0:
        return 0
    free = max(0.0, 1.0 - queue_depth / ready)
    return max(0, int((ready - idle_reserve) * free))


class FrontendShare:
    """This frontend's part of the room for redundant work that all frontends have together.

    Each takes an equal whole number of workers; what is left over goes round by turns, so that
    with less room than frontends each of them has some of it some of the time. All parts together
    are the room that one frontend alone would take: exactly while the turns are in step, and on
    average in any case. They are counted from the last change, of which all frontends hear at
    about the same time; their clocks need not agree.
    """

    def __init__(self) -> None:
        self.count = 1
        self.index = 0
        self._since = 0.0

    def change(self, count: int, index: int, now: float) -> bool:
        """`count` frontends now, of which this is number `index`; whether that is news."""
        assert 0 <= index < count, f"frontend {index} of {count}"
        if (count, index) == (self.count, self.index):
            return False
        self.count, self.index, self._since = count, index, now
        return True

    def of(self, room: int, now: float) -> int:
        """This frontend's part of `room`."""
        each, rest = divmod(room, self.count)
        turn = int((now - self._since) / TURN_S)
        return each + int((self.index + turn) % self.count < rest)
