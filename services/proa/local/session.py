"""A child and all it started, found through /proc.

Every child leads a session. That is not enough: what it starts may lead sessions of its own, as a
worker's Triton does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

_PROC = "/proc"
_STAT_BYTES_MAX = 4096


@dataclass(frozen=True)
class Member:
    """A living process."""

    pid: int
    parent: int
    group: int
    session: int


class Family:
    """The session that process `leader` leads, and the sessions that its members have made.

    A session once seen stays known, so that its members are found when their parents are gone.
    To be used no longer than anybody of it may live: its numbers come again after that.
    """

    def __init__(self, leader: int) -> None:
        self.sessions = {leader}
        self._seen: list[Member] = []

    def members(self) -> list[Member]:
        """Who lives now. One look at every process of the machine: a few milliseconds."""
        others = _processes()
        found: dict[int, Member] = {}
        while True:
            new = [m for m in others if m.session in self.sessions or m.parent in found]
            if not new:
                self._seen = list(found.values())
                return self._seen
            found |= {m.pid: m for m in new}
            self.sessions |= {m.session for m in new}
            others = [m for m in others if m.pid not in found]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every member."""
        send(self.members(), number)

    def seen(self) -> list[Member]:
        """Who of those that `members` found last lives still: a look at them alone. Nobody looked
        yet: `members`."""
        if not self._seen:
            return self.members()
        now = (_member(seen.pid) for seen in self._seen)
        return [member for member in now if member is not None and member.session in self.sessions]


def send(members: Iterable[Member], number: signal.Signals) -> None:
    """Send a signal to each of them."""
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, number)


def start_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None: no such process, or a zombie.

    Together with the pid it names a process for ever: pids come again, start times do not.
    """
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _processes() -> list[Member]:
    pids = (int(name) for name in os.listdir(_PROC) if name.isdigit())  # noqa: PTH208
    return [member for pid in pids if (member := _member(pid)) is not None]


def _member(pid: int) -> Member | None:
    fields = _stat(pid)
    return None if fields is None else Member(pid, *map(int, fields[1:4]))


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on; the name before them may hold anything."""
    try:
        file = os.open(f"{_PROC}/{pid}/stat", os.O_RDONLY)  # half of what pathlib takes
    except OSError:
        return None
    try:
        text = os.read(file, _STAT_BYTES_MAX)
    except OSError:
        return None
    finally:
        os.close(file)
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else fields
