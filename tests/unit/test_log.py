"""Logs: one line a record, as text or as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.errors import SettingsError
from proa.runtime.log import JsonFormatter, LineFormatter, setup
from proa.telemetry import TraceContext, current

WHEN = datetime(2026, 1, 2, 1, 1, 1, 500_000, UTC).timestamp()
CONTEXT = TraceContext(0xA, 0xB, True)
TRACE, SPAN = "a".zfill(32), "b".zfill(16)


def record(message: str = "request", *args: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("proa.request", logging.INFO, __file__, 1, message, args, None)
    made.created = WHEN
    made.__dict__.update(extra)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter("frontend").format(made)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    found = json.loads(line, parse_constant=pytest.fail, object_pairs_hook=once)
    assert isinstance(found, dict)
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _value in pairs}) == len(pairs)
    return dict(pairs)


def as_text(made: logging.LogRecord) -> str:
    return LineFormatter("frontend").format(made)


@pytest.fixture
def call() -> Iterator[None]:
    """Within a traced call."""
    token = current.set(CONTEXT)
    yield
    current.reset(token)


def test_the_keys_of_a_json_line() -> None:
    assert as_json(record("a %s", "b")) == {
        "time": "2026-01-02T01:01:01.500Z",
        "level": "INFO",
        "service": "frontend",
        "logger": "proa.request",
        "message": "a b",
    }


def test_fields_stand_beside_the_message() -> None:
    fields = {"model": "resnet", "ms": 12.5, "hedges": 1, "kept": True, "group": None}
    made = record(fields=fields)
    found = as_json(made)
    assert {key: found[key] for key in fields} == fields
    assert as_text(made) == (
        "01:01:01.500 INFO  frontend  request model=resnet ms=12.5 hedges=1 kept=true"
    )


def test_a_field_never_takes_the_place_of_a_key() -> None:
    fields = {"message": "x", "time": 1, "level": "y", "fields.level": "z", "exception": "none"}
    found = as_json(record(fields=fields))
    assert found["message"] == "request"
    assert found["fields.message"] == "x"
    assert found["fields.time"] == 1
    assert (found["level"], found["fields.level"], found["fields.fields.level"]) == (
        "INFO",
        "y",
        "z",
    )
    assert found["exception"] == "none"  # there is none of ours


@pytest.mark.usefixtures("call")
def test_the_current_call_is_told() -> None:
    found = as_json(record())
    assert (found["trace_id"], found["span_id"]) == (TRACE, SPAN)
    assert as_text(record()).endswith(f"request trace_id={TRACE}")


@pytest.mark.usefixtures("call")
def test_the_ids_of_the_record_go_first() -> None:
    found = as_json(record(trace_id="1" * 32, span_id="2" * 16))
    assert (found["trace_id"], found["span_id"]) == ("1" * 32, "2" * 16)
    found = as_json(record(fields={"trace_id": "3" * 32}))
    assert found["trace_id"] == "3" * 32
    assert as_text(record(fields={"trace_id": "3"})).endswith("request trace_id=3")


def test_without_a_call_there_are_no_ids() -> None:
    assert "trace_id" not in as_json(record())
    assert "trace_id" not in as_text(record())


def test_a_traceback_is_a_key_of_json_and_lines_of_text() -> None:
    error = ValueError("first\nsecond")
    made = record()
    made.exc_info = (ValueError, error, None)
    assert as_json(made)["exception"] == "ValueError: first\nsecond"
    head, *rest = as_text(made).splitlines()
    assert head == "01:01:01.500 INFO  frontend  request"
    assert rest[-2:] == ["ValueError: first", "second"]


def test_no_peer_forges_a_line_or_a_field() -> None:
    bad = "x\r\n12:00:00.000 INFO  frontend  ready\u2028\x1b[2J\x85\x0b"
    assert as_json(record("%s", bad))["message"] == bad
    assert len(as_text(record("%s", bad)).splitlines()) == 1
    assert "\x1b" not in as_text(record("%s", bad))
    line = as_text(record(fields={"tenant": "a status=OK", "b c": "", "d": bad, "e": 'q"'}))
    assert len(line.splitlines()) == 1
    assert ' tenant="a status=OK" b_c="" d="x\\r\\n12' in line
    assert line.endswith(' e="q\\""')


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), object(), [1], {"a": 1}, b"x"])
def test_what_json_does_not_have_becomes_text(value: object) -> None:
    assert as_json(record(fields={"value": value}))["value"] == str(value)


def test_fields_that_are_none() -> None:
    assert as_json(record(fields="a mistake"))["message"] == "request"
    assert as_text(record(fields=["a"])).endswith("request")


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())


@given(st.text(), st.dictionaries(st.text(), VALUES, max_size=5))
def test_any_record_is_one_line(message: str, fields: dict[str, Any]) -> None:
    made = record("%s", message, fields=fields)
    assert as_json(made)["message"] == message
    assert len(as_text(made).splitlines()) == 1


def test_a_wrong_format_is_named() -> None:
    with pytest.raises(SettingsError, match="PROA_LOG_FORMAT='xml' is not one of text, json"):
        setup("x", style="xml")


RUN = """
import logging
from proa.runtime.serve import run
async def main():
    logging.getLogger("proa.request").info("request", extra={"fields": {"model": "m"}})
raise SystemExit(run(main, service="encoder"))
"""


@pytest.mark.parametrize(("style", "code"), [("json", 0), ("loud", 2)])
def test_a_process_obeys_its_setting(style: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={"PROA_LOG_FORMAT": style},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "PROA_LOG_FORMAT='loud' is not one of text, json" in done.stderr
        return
    found = json.loads(done.stderr)
    assert (found["service"], found["message"], found["model"]) == ("encoder", "request", "m")
