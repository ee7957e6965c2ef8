"""Where tests let an agent die or stop."""

from __future__ import annotations

import os
import signal

import pytest

from proa.errors import SettingsError
from proa.store.agent import crash_at


@pytest.mark.parametrize(("text", "number"), [("W3:2", 9), ("ACK:2:STOP", 19)])
def test_the_nth_time_of_a_step_counts(monkeypatch, text, number):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, which: sent.append((pid, which)))
    step = crash_at(text)
    for name in ("W1", "W2", "W3", "ACK", "W4"):
        step(name)
    assert not sent
    step(text.partition(":")[0])
    assert sent == [(os.getpid(), signal.Signals(number))]
    step(text.partition(":")[0])
    assert len(sent) == 1


def test_nothing_is_done_where_nothing_was_asked_for():
    crash_at("")("W1")


@pytest.mark.parametrize("text", ["W5:1", "W1", "W1:", "W1:x", "W1:1:TERM"])
def test_what_is_no_step_and_number_is_an_error(text):
    with pytest.raises(SettingsError, match="PROA_STORE_CRASH_AT"):
        crash_at(text)
