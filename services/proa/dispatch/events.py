"""What the engine is told. Every event is handled with the time at which it happened, in seconds.

Ids are small integers given out by the shell (queries) or by the engine (attempts, groups);
workers are named by strings. No tensor ever gets here.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

DEPLOYED, PARITY = "deployed", "parity"


class ErrorKind(Enum):
    """Why an attempt failed, as far as the engine cares."""

    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    OVERLOADED = "RESOURCE_EXHAUSTED"
    INVALID = "INVALID_ARGUMENT"
    DEADLINE = "DEADLINE_EXCEEDED"


@dataclass(frozen=True, slots=True)
class QueryArrived:
    """`key`: model, tenant, names, shapes, dtypes, batch size; only like is coded with like.
    `size`: bytes held for it; `exact`: never answer it with a reconstruction; `reconstruct`: a
    drill, answer it from the code as if its worker had died."""

    query: int
    key: Hashable
    deadline: float
    size: int = 0
    exact: bool = False
    policy: str | None = None
    codable: bool = True
    reconstruct: bool = False


@dataclass(frozen=True, slots=True)
class QueryCancelled:
    """The client no longer wants it."""

    query: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An attempt at a query ended. `message` goes to the client if nothing else saves it.
    `load`: share (0 to 1) of the worker's time that others, not this engine, used lately."""

    attempt: int
    ok: bool
    error_kind: ErrorKind | None = None
    message: str = ""
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class ParityAnswered:
    """An attempt at a parity row ended."""

    attempt: int
    ok: bool
    error_kind: ErrorKind | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A Decode ended; `queries` were reconstructed (none: it failed)."""

    group: int
    queries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Assessed:
    """An Assess ended: the share of positions whose reconstruction agrees with the known answer;
    None: it could not be told."""

    group: int
    agreement: float | None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer of a SetTimer is due."""

    timer: Hashable


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker passed its canary. `domain`: what fails together; `package`: hash it serves."""

    worker: str
    domain: str
    package: str
    roles: frozenset[str] = frozenset((DEPLOYED, PARITY))


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker is about to leave: nothing new goes there, what runs there may finish. WorkerLeft
    takes what still runs then; WorkerJoined brings the worker back."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerMoved:
    """The same worker belongs to another failure domain from now on; what runs there goes on, and
    groups keep the domains that they were formed with."""

    worker: str
    domain: str


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker is gone for good."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerSuspected:
    """A worker is no longer trusted until it joins again."""

    worker: str


@dataclass(frozen=True, slots=True)
class FrontendsChanged:
    """`count` frontends share the workers now; this one is number `index`, from 0."""

    count: int
    index: int


Event = (
    QueryArrived
    | QueryCancelled
    | Answered
    | ParityAnswered
    | Decoded
    | Assessed
    | TimerFired
    | WorkerJoined
    | WorkerDraining
    | WorkerMoved
    | WorkerLeft
    | WorkerSuspected
    | FrontendsChanged
)
