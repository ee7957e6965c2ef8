"""W3C trace context: which span of which trace a call belongs to, and how calls carry it.

Source: https://www.w3.org/TR/trace-context/ (level 1, version 00).
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
STATE_CHARS_MAX = 512

_SAMPLED = 1
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e]*")

# Dice of our own: a program that seeds the global ones would give the same ids in every process.
_dice = random.Random()  # noqa: S311  # ids are no secrets
os.register_at_fork(after_in_child=_dice.seed)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span of one trace. `state`: tracestate, passed on as it came (vendors' own data)."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""

    @property
    def trace_hex(self) -> str:
        """32 lower-case hex digits."""
        return f"{self.trace_id:032x}"

    @property
    def span_hex(self) -> str:
        """16 lower-case hex digits."""
        return f"{self.span_id:016x}"


current: ContextVar[TraceContext | None] = ContextVar("proa_trace_context", default=None)


def parse(metadata: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
    """The context that a call's metadata carries; None if absent, malformed or given twice.

    Never raises. tracestate is dropped above 512 characters. Flags other than `sampled` are
    dropped, as level 1 asks of flags it does not know.
    """
    parents: list[str | bytes] = []
    states: list[str | bytes] = []
    for key, value in metadata:
        if key == TRACEPARENT:
            parents.append(value)
        elif key == TRACESTATE:
            states.append(value)
    if len(parents) != 1:
        return None
    found = _PARENT.fullmatch(_text(parents[0]))
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    # Later versions may append fields; 00 has none, ff is not a version.
    if version == "ff" or (version == "00" and more):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), _joined(states))


def to_metadata(context: TraceContext | None) -> tuple[tuple[str, str], ...]:
    """What a call made in `context` carries; nothing for None."""
    if context is None:
        return ()
    parent = f"00-{context.trace_hex}-{context.span_hex}-{'01' if context.sampled else '00'}"
    if not context.state:
        return ((TRACEPARENT, parent),)
    return ((TRACEPARENT, parent), (TRACESTATE, context.state))


def new_context(sampled: bool) -> TraceContext:
    """The first span of a new trace."""
    return TraceContext(_new_id(128), _new_id(64), sampled)


def child_of(context: TraceContext) -> TraceContext:
    """A new span of the same trace; its parent is `context.span_id`."""
    return TraceContext(context.trace_id, _new_id(64), context.sampled, context.state)


def _new_id(bits: int) -> int:
    return _dice.getrandbits(bits) or 1  # 0 stands for none


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _joined(states: list[str | bytes]) -> str:
    """Several headers are one list (RFC 9110, 5.3). Empty where it cannot be sent on."""
    state = ",".join(map(_text, states)).strip()
    return state if len(state) <= STATE_CHARS_MAX and _STATE.fullmatch(state) else ""
