"""The timers the engine asks for; it ignores those whose reason has gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeadlineTimer:
    """The client's deadline for a query."""

    query: int


@dataclass(frozen=True, slots=True)
class HedgeTimer:
    """A query is late enough for a hedge."""

    query: int


@dataclass(frozen=True, slots=True)
class DrillTimer:
    """A drill has waited long enough for its reconstruction."""

    query: int


@dataclass(frozen=True, slots=True)
class CloseTimer:
    """A group has waited for members long enough."""

    group: int


@dataclass(frozen=True, slots=True)
class PatienceTimer:
    """A missing member of a group is now late enough to be reconstructed."""

    group: int


@dataclass(frozen=True, slots=True)
class ExpiryTimer:
    """All members' deadlines have passed: the group is kept no longer."""

    group: int


@dataclass(frozen=True, slots=True)
class TieTimer:
    """The worker that a query is tied to is stuck: from now on any other will do."""

    query: int


@dataclass(frozen=True, slots=True)
class LookTimer:
    """What waits for a query's sake, or it itself, is to be looked at although nothing happens."""

    query: int


@dataclass(frozen=True, slots=True)
class Tick:
    """The periodic look for attempts that are overdue."""


# They concern one query, and nothing once it is answered or has failed.
OF_QUERY = (DeadlineTimer, HedgeTimer, DrillTimer, TieTimer, LookTimer)
