"""W3C trace context: what we take from others' metadata and what we send."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.telemetry import TraceContext, child_of, new_context, parse, to_metadata

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
CONTEXT = TraceContext(int(TRACE, 16), int(SPAN, 16), sampled=True)


def test_the_example_of_the_specification() -> None:
    found = parse([("user-agent", "x"), ("traceparent", GOOD), ("tracestate", "a=1,b=2")])
    assert found == TraceContext(CONTEXT.trace_id, CONTEXT.span_id, True, "a=1,b=2")
    assert (found.trace_hex, found.span_hex) == (TRACE, SPAN)
    assert to_metadata(found) == (("traceparent", GOOD), ("tracestate", "a=1,b=2"))


def test_nothing_in_nothing_out() -> None:
    assert parse([]) is None
    assert parse([("tracestate", "a=1")]) is None
    assert to_metadata(None) == ()


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_one_flag_counts(flags: str, sampled: bool) -> None:
    found = parse([("traceparent", GOOD[:-2] + flags)])
    assert found is not None
    assert found.sampled is sampled
    assert to_metadata(found)[0][1][-2:] == ("01" if sampled else "00")


@pytest.mark.parametrize("value", [f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-ever"])
def test_later_versions_are_read_as_far_as_we_know_them(value: str) -> None:
    assert parse([("traceparent", value)]) == CONTEXT


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        GOOD + "-more",
        GOOD + "\n",
        " " + GOOD,
        GOOD.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00_{TRACE}_{SPAN}_01",
        GOOD.replace("4", "\u0664"),  # a digit, but not one of ours
    ],
)
def test_what_is_malformed_is_absent(value: str) -> None:
    assert parse([("traceparent", value)]) is None


def test_two_parents_are_none() -> None:
    assert parse([("traceparent", GOOD), ("traceparent", GOOD)]) is None


def test_bytes_are_read_as_text() -> None:
    assert parse([("traceparent", GOOD.encode())]) == CONTEXT
    assert parse([("traceparent", None)]) is None  # type: ignore[list-item]  # JSON has it


def test_state_is_passed_on_up_to_a_limit() -> None:
    def state(*values: str | bytes) -> str:
        found = parse([("traceparent", GOOD), *(("tracestate", value) for value in values)])
        assert found is not None
        return found.state

    assert state("a=1", "b=2") == "a=1,b=2"
    assert state("x" * 512) == "x" * 512
    assert state("x" * 513) == ""
    assert state("x" * 300, "y" * 300) == ""
    assert state("a=\u00e9") == ""  # gRPC would refuse to send it
    assert state("a=1\r\nb: 2") == ""
    assert state(b"\xff") == ""


TEXTS = st.one_of(
    st.text(max_size=80),
    st.binary(max_size=80),
    st.text("0123456789abcdef-", max_size=60),
    st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*", fullmatch=True),
)
KEYS = st.sampled_from(["traceparent", "tracestate", "other", ""])


@given(st.lists(st.tuples(KEYS, TEXTS), max_size=4))
def test_parse_never_raises_and_what_it_takes_is_fit_to_send(
    metadata: list[tuple[str, str | bytes]],
) -> None:
    found = parse(metadata)
    if found is None:
        return
    assert 0 < found.trace_id < 1 << 128
    assert 0 < found.span_id < 1 << 64
    sent = to_metadata(found)
    assert all(value.isascii() and value.isprintable() for _key, value in sent)
    assert parse(sent) == found


@given(
    st.integers(1, (1 << 128) - 1),
    st.integers(1, (1 << 64) - 1),
    st.booleans(),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=512),
)
def test_what_we_send_is_what_we_read(trace: int, span: int, sampled: bool, state: str) -> None:
    context = TraceContext(trace, span, sampled, state)
    assert parse(to_metadata(context)) == context


def test_a_child_is_another_span_of_the_same_trace() -> None:
    parent = TraceContext(7, 8, True, "a=1")
    child = child_of(parent)
    assert (child.trace_id, child.sampled, child.state) == (7, True, "a=1")
    assert child.span_id not in (0, 8)


def test_ids_do_not_follow_the_seed_of_a_program() -> None:
    random.seed(1)
    first = new_context(sampled=True)
    random.seed(1)
    second = new_context(sampled=True)
    assert first.trace_id != second.trace_id
    assert first.span_id != second.span_id
    assert first.sampled is True


IMPORTS = """
import sys
import proa.client
import proa.telemetry
import proa.runtime.tracing as tracing
assert tracing.open_tracing("x", {}, None) is None
print(sorted(m for m in sys.modules if m.startswith(("opentelemetry.sdk", "opentelemetry.exp"))))
"""


def test_only_a_process_that_exports_imports_the_sdk() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "[]\n"
