"""Which workers an owner has heard of lately, and so which of them a block may forget.

Every client is a worker of its own, and a block remembers its pushes so that none is applied twice.
Without an end to that, each commit would write down every client there ever was. So a block with
more than `workers_kept` of them forgets those that were silent for `worker_silent_s`. It cannot go
by their number alone: as many live workers may push to a block between a push and its resend. Only
clients that named themselves at random are forgotten (from FIRST_CLIENT on): sessions, and callers
that number their own steps, may come back to them at any time.

Why nothing is applied twice: what a block forgot can only be sent again by a client that nobody of
this owner heard of for so long. While it tries, it says its push every few seconds; what it has
given up it sends again only within half of that time (`inflight`). Copies of a message do not live
that long either. Time is what the owner was awake, since its start: what came while it was frozen
is read before anybody is taken for silent, and a new owner waits as long again.

Owner and parity agree because the owner decides, and says so by marks in the entry of the outbox:
they are applied where the entry is. They are not undone where it is: the client was silent all the
same, and going back needs nothing of it. So tables of one version may differ by clients that were
forgotten, and any of them will do for a new owner.
"""

from __future__ import annotations

from itertools import islice

from proa.store.protocol.log import FORGET, Mark, Sessions

FIRST_CLIENT = 1 << 62  # below: sessions, and workers that callers have named
TICK_S_MAX = 1.0  # between ticks; beyond, the process was not awake


class Heard:
    """Of one owner, from its start on."""

    def __init__(self, kept: int, silent_s: float) -> None:
        self._kept, self._silent_s = kept, silent_s
        self._awake_s, self._ticked = 0.0, float("inf")
        self._last: dict[int, float] = {}  # the longest ago first

    def tick(self, now: float) -> None:
        """Time passes."""
        self._awake_s += min(max(0.0, now - self._ticked), TICK_S_MAX)
        self._ticked = now

    def note(self, worker: int) -> None:
        """It has said something."""
        self._last.pop(worker, None)
        self._last[worker] = self._awake_s
        while self._is_silent(oldest := next(iter(self._last))):
            del self._last[oldest]

    def to_forget(self, sessions: Sessions) -> tuple[Mark, ...]:
        """Marks by which a block forgets clients that it need not remember."""
        spare = len(sessions.workers) - self._kept
        if spare <= 0 or self._awake_s <= self._silent_s:
            return ()
        clients = (worker for worker in sessions.workers if worker >= FIRST_CLIENT)
        silent = (worker for worker in clients if self._is_silent(worker))
        return tuple(Mark(worker, FORGET, 0) for worker in islice(silent, spare))

    def _is_silent(self, worker: int) -> bool:
        return self._awake_s - self._last.get(worker, 0.0) > self._silent_s
