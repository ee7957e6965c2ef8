"""What the engine wants done. The shell performs actions in the order given."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """Where an answer comes from, and what an attempt is for."""

    WORKER = "worker"
    RETRY = "retry"
    REPLICA = "replica"
    HEDGE = "hedge"
    RECONSTRUCTED = "reconstructed"


@dataclass(frozen=True, slots=True)
class Send:
    """Send `query` to `worker`; report `Answered(attempt, ...)`."""

    attempt: int
    query: int
    worker: str
    source: Source


@dataclass(frozen=True, slots=True)
class SendParity:
    """Encode the `members` (k query ids in position order; those in `fillers` are recently
    answered queries) and run parity row `row` on `worker`; report `ParityAnswered`."""

    attempt: int
    group: int
    row: int
    members: tuple[int, ...]
    fillers: frozenset[int]
    worker: str


@dataclass(frozen=True, slots=True)
class Decode:
    """Reconstruct the `missing` positions of `group`; report `Decoded`."""

    group: int
    members: tuple[int, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Assess:
    """Decode each position of `group` in turn, compare with its known prediction; report
    `Assessed`."""

    group: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer `query`. `attempt` holds the exact answer; None: the reconstruction by `group`.
    `would_be_s`: with `mode: observe`, how long after its arrival it could have been answered."""

    query: int
    source: Source
    attempt: int | None = None
    worker: str | None = None
    group: int | None = None
    would_be_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer `query` with an error; `status` is a gRPC status name."""

    query: int
    status: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel this one attempt at its worker. No report is needed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Report `TimerFired(timer)` at time `at`, in seconds."""

    timer: Hashable
    at: float


@dataclass(frozen=True, slots=True)
class Release:
    """The tensors of `query` are no longer needed."""

    query: int


@dataclass(frozen=True, slots=True)
class ForgetGroup:
    """The parity predictions of `group` are no longer needed."""

    group: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Try `worker` with a canary until it answers, then report `WorkerJoined`."""

    worker: str


Action = (
    Send
    | SendParity
    | Decode
    | Assess
    | Reply
    | Fail
    | Cancel
    | SetTimer
    | Release
    | ForgetGroup
    | Probe
)
