"""What became of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The error of a request that was never sent because `inflight_max` requests were open.
DROPPED = "Dropped"


@dataclass(frozen=True)
class Outcome:
    """What a `send` function found. `source`: who answered; `value`: whatever the caller keeps."""

    ok: bool = True
    source: str = ""
    error: str = ""
    value: Any = None


@dataclass(frozen=True)
class Record:
    """One request of a run. Times are seconds from the run's start.

    sent_s: when it really left (None: dropped). latency_s: done_s - intended_s, the wait of a user
    who came at the intended time, whatever delayed the generator. error: empty if ok, otherwise
    the error's class name and message.
    """

    index: int
    intended_s: float
    sent_s: float | None
    done_s: float
    ok: bool
    source: str = ""
    error: str = ""
    value: Any = None

    @property
    def latency_s(self) -> float:
        return self.done_s - self.intended_s

    @property
    def late_s(self) -> float:
        """How long after its intended time it was sent; 0 for a dropped one."""
        return 0.0 if self.sent_s is None else self.sent_s - self.intended_s
