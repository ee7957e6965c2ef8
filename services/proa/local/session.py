"""A child and all it started, found through /proc.

Every child leads a session. That is not enough: what it starts may lead sessions of its own, as a
worker's Triton does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


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

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to every member. Returns how many there were."""
        members = self.members()
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)
        return len(members)


def start_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None: no such process, or a zombie.

    Together with the pid it names a process for ever: pids come again, start times do not.
    """
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _processes() -> list[Member]:
    found: list[Member] = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                found.append(Member(int(entry.name), *map(int, fields[1:4])))
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the name before them may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields
