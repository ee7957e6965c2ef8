"""Low priority for what is killed: seen on processes that stop before they can be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.eventually import eventually_sync
from proa.local.priority import NICE_LOW, Priority, give_way, kill
from proa.local.session import Family

# Leads a session, and starts a process that leads one of its own.
PARENT = """
import subprocess
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def family() -> Iterator[Family]:
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        family = Family(parent.pid)
        yield family
        kill(family.members())


def test_all_give_way_in_whatever_session(family: Family) -> None:
    members = family.members()
    assert len({member.session for member in members}) == len(members) == 2
    give_way(members)
    assert {os.getpriority(os.PRIO_PROCESS, member.pid) for member in members} == {NICE_LOW}
    if Priority.detect().autogroup:
        # The unprivileged may set one of them at a time: that of the newest.
        newest = max(member.session for member in members)
        group = Path(f"/proc/{newest}/autogroup").read_text()
        assert group.split()[-1] == str(NICE_LOW), group


def test_who_was_seen_is_killed_without_a_look_at_the_machine(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(family.members()) == 2
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", lambda _path: pytest.fail("looked at every process"))
        seen = family.seen()
        assert len(seen) == 2
        kill(seen)
        eventually_sync(lambda: not family.seen())


def test_who_is_gone_harms_nobody(family: Family) -> None:
    members = family.members()
    kill(members)
    eventually_sync(lambda: not family.seen())
    kill(members)
