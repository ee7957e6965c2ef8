"""The workers' table of `proa status`."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from proa.cli.status import _workers_table


def worker(**changed: Any) -> dict[str, Any]:
    """As a StatusReport's JSON has it: 64-bit numbers are texts."""
    return {
        "name": "w0", "domain": "n0", "roles": ["deployed"], "state": "up", "inflight": 0,
        "latency_ms": 1.0, "errors": "0", "answered": "7", "checks": "0", "faults": "0", **changed,
    }  # fmt: skip


def drawn(*workers: dict[str, Any], colors: bool = False) -> str:
    console = Console(
        width=160,
        file=io.StringIO(),
        force_terminal=colors,
        color_system="standard" if colors else None,
    )
    console.print(_workers_table({"name": "digits", "workers": workers}))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_workers_that_check_nothing_have_no_columns_for_it():
    assert "faults" not in drawn(worker())


@pytest.mark.parametrize("changed", [{"checks": "1234567"}, {"faults": "3"}])
def test_checks_and_faults_are_shown(changed: dict[str, str]):
    text = drawn(worker(name="w1"), worker(**changed))
    assert "checks" in text
    assert "faults" in text
    assert next(iter(changed.values())) in text


def test_a_state_with_a_reason_has_the_color_of_the_state():
    text = drawn(worker(state="quarantined: 2 faults in 60 min"), colors=True)
    assert "\x1b[31mquarantined: 2 faults in 60 min" in text
