"""Restarting processes at low priority, and back to normal when they are ready; ending ones too.

A worker that comes back imports torch: seconds of full CPU, taken from those that serve. One that
is killed gives its memory back: 30 to 50 ms of CPU. Two ways:

- The nice value, where we may lower it again: CAP_SYS_NICE, or RLIMIT_NICE of at least 20.
- The nice value of the session's autogroup. Where the kernel groups processes by session
  (kernel.sched_autogroup_enabled) a process's own nice value counts within its session only. The
  autogroup's is anyone's to set to 0 or more, but from the unprivileged the kernel takes one such
  write in 100 ms, of all processes together.

Where both work both are used: which of them counts depends on the cgroup. Where neither does,
processes start at normal priority.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from proa.local.session import Family, Member, send

log = logging.getLogger(__name__)

NICE_LOW = 10  # an eleventh of the weight of a process at 0
_CAP_SYS_NICE = 23
_AUTOGROUP_RETRY_S = 0.11
_AUTOGROUP_TRIES_MAX = 100
_AUTOGROUP_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")


@dataclass
class Priority:
    """What this machine allows. `nice`: start at +10 and back; `autogroup`: the same by session."""

    nice: bool
    autogroup: bool

    @classmethod
    def detect(cls) -> Priority:
        """Find out, without changing anything."""
        return cls(nice=_may_lower_nice(), autogroup=_autogroups_enabled())

    @property
    def start_nice(self) -> int:
        """The nice increment to start a process with."""
        return NICE_LOW if self.nice else 0

    def describe(self) -> str:
        """For people: which way is used."""
        ways = [name for name, used in (("nice", self.nice), ("autogroup", self.autogroup)) if used]
        return " and ".join(ways) or "none: processes start at normal priority"

    async def lower(self, family: Family, done: set[int]) -> None:
        """Lower the sessions of `family`, started with `start_nice`, that are not in `done` yet.

        To be called again and again while it starts: each session it makes has an autogroup of its
        own, at normal priority.
        """
        family.members()
        for session in family.sessions - done:
            await self._set_autogroup(session, NICE_LOW)
            done.add(session)

    async def restore(self, family: Family) -> None:
        """Back to normal, with every process and thread of the family."""
        groups = {member.group for member in family.members()}
        for group in groups if self.nice else ():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PGRP, group, 0)
        for session in family.sessions:
            await self._set_autogroup(session, 0)

    async def _set_autogroup(self, leader: int, nice: int) -> None:
        if not self.autogroup:
            return
        for _ in range(_AUTOGROUP_TRIES_MAX):
            try:
                _write_autogroup(leader, nice)
            except BlockingIOError:  # another session was changed in the last 100 ms
                await asyncio.sleep(_AUTOGROUP_RETRY_S)
            except (FileNotFoundError, ProcessLookupError):
                return  # the process is gone
            except OSError as exc:
                log.info("autogroup priority is not ours to set: %s", exc)
                self.autogroup = False
                return
            else:
                return


def kill(members: Collection[Member]) -> None:
    """SIGKILL, and low priority for what there is to do then, as far as it is ours to give: what a
    dead worker costs the CPUs of others is no part of its failure."""
    give_way(members)
    send(members, signal.SIGKILL)


def give_way(members: Collection[Member]) -> None:
    """Low priority to these, both ways."""
    for group in {member.group for member in members}:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, group, NICE_LOW)
    # The newest first, where one write is all that is taken: Triton's, of a worker.
    for session in sorted({member.session for member in members}, reverse=True):
        with contextlib.suppress(OSError):
            _write_autogroup(session, NICE_LOW)


def _write_autogroup(pid: int, nice: int) -> None:
    with Path(f"/proc/{pid}/autogroup").open("wb", buffering=0) as file:
        file.write(str(nice).encode())


def _autogroups_enabled() -> bool:
    try:
        enabled = _AUTOGROUP_SWITCH.read_text().strip() == "1"
    except OSError:
        return False
    return enabled and os.access("/proc/self/autogroup", os.W_OK)


def _may_lower_nice() -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if soft == resource.RLIM_INFINITY or soft >= 20:  # the lowest nice value allowed is 20 - limit
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False
