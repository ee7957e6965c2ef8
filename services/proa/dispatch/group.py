"""Coding groups: k queries, r parity rows, one state out of a table."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum


class GroupState(Enum):
    """OPEN takes members; CLOSED waits for answers; DECODABLE has what it needs to reconstruct."""

    OPEN = "open"
    CLOSED = "closed"
    DECODABLE = "decodable"
    DONE = "done"
    ABANDONED = "abandoned"


class GroupEvent(Enum):
    """What moves a group on."""

    CLOSE = "close"
    RECOVERABLE = "recoverable"
    FINISH = "finish"
    LOSE = "lose"


TRANSITIONS = {
    (GroupState.OPEN, GroupEvent.CLOSE): GroupState.CLOSED,
    (GroupState.OPEN, GroupEvent.FINISH): GroupState.ABANDONED,
    (GroupState.CLOSED, GroupEvent.RECOVERABLE): GroupState.DECODABLE,
    (GroupState.CLOSED, GroupEvent.FINISH): GroupState.DONE,
    (GroupState.CLOSED, GroupEvent.LOSE): GroupState.ABANDONED,
    (GroupState.DECODABLE, GroupEvent.FINISH): GroupState.DONE,
}


class IllegalTransition(AssertionError):
    """The engine broke its own rules; the group is left as it was."""


class RowState(Enum):
    """A parity row: waiting for a worker, running, answered, or lost."""

    WAITING = "waiting"
    RUNNING = "running"
    ANSWERED = "answered"
    LOST = "lost"


@dataclass(slots=True)
class Group:
    """`members`: query ids in position order, fillers last. `domains`: where its members and rows
    run; no two of them share one. `unfilled`: it is open beyond its time. `parity_due_at`: when a
    running row should be back."""

    id: int
    key: Hashable
    package: str
    k: int
    rows: list[RowState]
    sampled: bool
    state: GroupState = GroupState.OPEN
    members: list[int] = field(default_factory=list)
    fillers: frozenset[int] = frozenset()
    domains: set[str] = field(default_factory=set)
    unfilled: bool = False
    decoding: bool = False
    decoded: bool = False
    decode_failed: bool = False
    assessing: bool = False
    patience_at: float | None = None
    parity_due_at: float = 0.0

    def move(self, event: GroupEvent) -> None:
        """Follow the table; an illegal move raises and changes nothing."""
        new = TRANSITIONS.get((self.state, event))
        if new is None:
            raise IllegalTransition(f"group {self.id}: {event.value} while {self.state.value}")
        self.state = new

    @property
    def real_members(self) -> list[int]:
        """The members that are queries of this group, not fillers."""
        return [q for q in self.members if q not in self.fillers]

    @property
    def costs_copies(self) -> bool:
        """Whether it was filled, and its parity is as much work as copies of its queries."""
        return bool(self.fillers) and len(self.real_members) <= len(self.rows)

    @property
    def rows_answered(self) -> int:
        """How many parity predictions have arrived."""
        return sum(1 for row in self.rows if row is RowState.ANSWERED)

    @property
    def rows_possible(self) -> int:
        """How many parity predictions have arrived or may still arrive."""
        return sum(1 for row in self.rows if row is not RowState.LOST)
