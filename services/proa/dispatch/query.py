"""A query's life in the engine, and an attempt at it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from proa.dispatch.actions import Reply, Source


class QueryState(Enum):
    """QUEUED waits for a worker; SENT has been to one; REPLIED and FAILED are final."""

    QUEUED = "queued"
    SENT = "sent"
    REPLIED = "replied"
    FAILED = "failed"


@dataclass(slots=True)
class Query:
    """`known`: its exact prediction, by `package`, has arrived. `waiting`: retries and copies that
    wait for a worker. `drill`: answer it from the code; `held`: its exact answer, which waits for
    that, and `computed`: that one is by `package`. `look_at`: when it is looked at again although
    nothing happens. `holds`: how many parts of the engine still need its tensors."""

    id: int
    key: Hashable
    deadline: float
    size: int
    exact: bool
    policy: str
    codable: bool
    arrived_at: float
    state: QueryState = QueryState.QUEUED
    sent_at: float = 0.0
    retries: int = 0
    attempts: set[int] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    retries_max: int = 0
    waiting: int = 0
    hedged: bool = False
    group: int | None = None
    package: str = ""
    drill: bool = False
    held: Reply | None = None
    computed: bool = False
    known: bool = False
    would_be_s: float | None = None
    look_at: float = 0.0
    error: tuple[str, str] = ("UNAVAILABLE", "no worker answered")
    holds: int = 1

    @property
    def settled(self) -> bool:
        """Whether the client has its answer."""
        return self.state in (QueryState.REPLIED, QueryState.FAILED)

    @property
    def exact_may_come(self) -> bool:
        """Whether an exact answer is still under way or waiting to be sent."""
        return bool(self.attempts) or self.waiting > 0 or self.state is QueryState.QUEUED


@dataclass(frozen=True, slots=True)
class Attempt:
    """One computation on one worker: of a query, or of a parity row (`group`, `row`). `tied`: it
    had waited there, and was `sent_at` the time at which it began."""

    id: int
    worker: str
    sent_at: float
    query: int | None = None
    source: Source = Source.WORKER
    group: int | None = None
    row: int = 0
    tied: bool = False

    @property
    def redundant(self) -> bool:
        """Whether this is work that `none` would not do."""
        return self.source in (Source.REPLICA, Source.HEDGE, Source.RECONSTRUCTED)
