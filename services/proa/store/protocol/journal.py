"""Commits under way: what to do when each of them is on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.store.protocol.actions import Action, Commit, Fetch
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows
from proa.store.protocol.storage import Write

Then = Callable[[float], None]
Failed = Callable[[tuple[int, ...]], None]


def ignore(_now: float) -> None:
    """Nothing depends on this commit but what comes after it."""


class Journal:
    """Adds commits to `out`, the actions of its agent."""

    def __init__(self, out: list[Action]) -> None:
        self._out = out
        self._then: dict[int, Then] = {}
        self._failed: dict[int, Failed] = {}
        self._held: list[Write] = []
        self._ticket = 0

    def ticket(self) -> int:
        """A fresh ticket."""
        self._ticket += 1
        return self._ticket

    def hold(self, write: Write) -> None:
        """`write` belongs to the next commit."""
        self._held.append(write)

    def commit(
        self, writes: tuple[Write, ...], then: Then = ignore, failed: Failed | None = None
    ) -> None:
        """Write all that is held, then `writes`, at once; `then(now)` when the disk has it, or
        `failed(stripes)` when these stripes were bad, and nothing of it was written."""
        ticket = self.ticket()
        if failed is not None:
            self._failed[ticket] = failed
        self._then[ticket] = then
        self._out.append(Commit(ticket, (*self._held, *writes)))
        self._held.clear()

    def fetch(self, rows: Mapping[Block, Rows]) -> int:
        """Read own rows; the ticket that Fetched will carry."""
        ticket = self.ticket()
        self._out.append(Fetch(ticket, rows))
        return ticket

    def done(self, ticket: int, now: float) -> None:
        """The disk has it."""
        self._failed.pop(ticket, None)
        self._then.pop(ticket)(now)

    def failed(self, ticket: int) -> Failed | None:
        """Nothing of it was written; what to do about it when bad blocks were reset."""
        del self._then[ticket]
        return self._failed.pop(ticket, None)
