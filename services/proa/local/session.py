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

    def members(self) -> list[Member]:
        """Who lives now. One look at every process of the machine: a few milliseconds."""
        others = _processes()
        found: dict[int, Member] = {}
        while True:
            new = [m for m in others if m.session in self.sessions or m.parent in found]
            if not new:
                return list(found.values())
            found |= {m.pid: m for m in new}
            self.sessions |= {m.session for m in new}
            others = [m for m in others if m.pid not in found]

    def signal(self, number: signal.Signals) -> list[Member]:
        """Send a signal to every member. Returns who they were."""
        members = self.members()
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)
        return members


def alive(members: Iterable[Member]) -> bool:
    """Whether any of these lives still: a look at them alone."""
    return any(_stat(member.pid) is not None for member in members)


def start_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None: no such process, or a zombie.

    Together with the pid it names a process for ever: pids come again, start times do not.
    """
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _processes() -> list[Member]:
    found: list[Member] = []
    for name in os.listdir(_PROC):  # noqa: PTH208
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None:
                found.append(Member(int(name), *map(int, fields[1:4])))
    return found


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
