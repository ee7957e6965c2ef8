"""What every picture of a story shows: rows in sections, marks, the moments, the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from proa.telemetry.spans import Kind
from proa.traces.spans import Span
from proa.traces.story import DECODE, PARITY, Branch, Story
from proa.traces.verdict import failure, verdict

REDUNDANT = ("hedge", "retry", "replica")
_TRITON = "triton-server"
_CODERS = {"proa.api.v1.Encoder/InferParity": "encoder", "proa.api.v1.Decoder/Decode": "decoder"}


class Role(Enum):
    """What a bar stands for; decides its colour."""

    REQUEST = "request"
    WORKER = "worker"
    REDUNDANT = "redundant"
    CODING = "coding"
    INNER = "inner"


class Mark(Enum):
    """What became of it."""

    NONE = ""
    WON = "won"
    LATE = "late"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One span. Times in ms from the request's arrival."""

    span: Span
    depth: int
    label: str
    note: str
    role: Role
    mark: Mark
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class View:
    """`reply_ms`: when the client was answered. `first_ms`, `last_ms`: what the time axis spans."""

    story: Story
    verdict: str
    facts: str
    sections: tuple[Section, ...]
    reply_ms: float
    first_ms: float
    last_ms: float

    def note(self, row: Row) -> str:
        """What stands beside its bar; for one that the axis cuts off, where it ends."""
        if row.end_ms < self.first_ms or (row.end_ms > self.last_ms + 0.05 and not row.note):
            return f"until {row.end_ms:.1f} ms"
        return row.note

    def rows(self) -> list[Row]:
        """Of all sections."""
        return [row for section in self.sections for row in section.rows]


def view(story: Story) -> View:
    """The picture of `story`, not yet drawn."""
    reply_ms = story.root.duration_ms
    sections = tuple(_sections(story))
    # Clocks of other machines may be off, and a late answer may take for ever: neither may squeeze
    # the request itself into a corner. What reaches beyond the axis is cut there.
    room_ms = max(reply_ms / 2, 0.1)
    every = [row for section in sections for row in section.rows]
    rows = [r for r in every if r.end_ms > -room_ms and r.start_ms < reply_ms + room_ms]
    return View(
        story=story,
        verdict=verdict(story),
        facts=_facts(story),
        sections=sections,
        reply_ms=reply_ms,
        first_ms=max(min(row.start_ms for row in rows), -room_ms),
        last_ms=min(max(row.end_ms for row in rows), reply_ms + room_ms),
    )


def to_json(shown: View) -> dict[str, Any]:
    """The story as one tree, for programs."""
    root, story = shown.story.root, shown.story
    return {
        "trace_id": root.trace_id,
        "verdict": shown.verdict,
        "model": root.text("proa.model"),
        "source": story.source,
        "worker": root.text("proa.worker"),
        "error": root.error,
        "group": root.attributes.get("proa.group"),
        "position": root.attributes.get("proa.position"),
        "start_unix_ns": root.start_ns,
        "reply_ms": round(shown.reply_ms, 3),
        "sections": [
            {"title": section.title, "spans": [_row_json(row) for row in section.rows]}
            for section in shown.sections
        ],
    }


def _row_json(row: Row) -> Mapping[str, Any]:
    span = row.span
    return {
        "label": row.label,
        "depth": row.depth,
        "mark": row.mark.value,
        "note": row.note,
        "start_ms": round(row.start_ms, 3),
        "end_ms": round(row.end_ms, 3),
        "name": span.name,
        "kind": span.kind.name,
        "service": span.service,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "error": span.error,
        "attributes": dict(span.attributes),
        "links": [{"trace_id": trace, "span_id": one} for trace, one in span.links],
        "events": [{"at_unix_ns": at_ns, "name": name} for at_ns, name in span.events],
    }


def _facts(story: Story) -> str:
    root = story.root
    parts = [f"trace {root.trace_id}", root.text("proa.model")]
    if policy := root.text("proa.policy"):
        parts.append(f"policy {policy}")
    return ", ".join([*parts, f"reply at {root.duration_ms:.1f} ms"])


def _sections(story: Story) -> Iterable[Section]:
    t0_ns = story.root.start_ns
    reply_ns = story.root.end_ns
    own = [_row(d, s, t0_ns, reply_ns, set()) for d, s in story.request.spans]
    if story.caller is not None:
        own.insert(0, _row(0, story.caller, t0_ns, reply_ns, set()))
    yield Section("this request", tuple(own))
    for branch in story.members:
        title = story.member_name(branch)
        ends_ns = branch.root.end_ns
        yield Section(title, tuple(_row(d, s, t0_ns, ends_ns, set()) for d, s in _short(branch)))
    used = {branch.root.key for branch in story.used}
    for branch in story.parities:
        title = f"parity row {branch.root.text('proa.row', '?')}"
        yield Section(title, tuple(_row(d, s, t0_ns, reply_ns, used) for d, s in branch.spans))


def _short(branch: Branch) -> list[tuple[int, Span]]:
    """Of another request: itself and how it was answered; all its attempts if it was not."""
    winner = branch.winner()
    kept = {branch.root.key, *(span.key for span in branch.decodes())}
    kept |= {winner.key} if winner else {span.key for span in branch.attempts()}
    return [(depth, span) for depth, span in branch.spans if span.key in kept]


def _row(depth: int, span: Span, t0_ns: int, reply_ns: int, used: set[tuple[str, str]]) -> Row:
    label, role = _label(span)
    mark, note = _became(span, reply_ns, used)
    return Row(
        span=span,
        depth=depth,
        label=label,
        note=note,
        role=role,
        mark=mark,
        start_ms=(span.start_ns - t0_ns) / 1e6,
        end_ms=(span.end_ns - t0_ns) / 1e6,
    )


def _label(span: Span) -> tuple[str, Role]:
    if "proa.attempt" in span.attributes:
        kind, worker = span.text("proa.kind", "worker"), span.text("proa.worker", "?")
        if kind in REDUNDANT:
            return f"{kind}, {worker}", Role.REDUNDANT
        return worker, Role.WORKER
    if span.name == PARITY:
        return f"parity query, {span.text('proa.worker', '?')}", Role.CODING
    if span.name == DECODE:
        return "decode", Role.CODING
    if span.name in _CODERS:
        coder = _CODERS[span.name]
        return (coder if span.kind is Kind.SERVER else f"call to the {coder}"), Role.CODING
    if span.name.startswith("inference."):
        names = {Kind.SERVER: "request", Kind.CLIENT: "client's call"}
        return names.get(span.kind, span.name), Role.REQUEST
    if span.scope == _TRITON:
        return f"triton: {span.name}", Role.INNER
    return span.name.removeprefix("proa."), Role.INNER


def _became(span: Span, reply_ns: int, used: set[tuple[str, str]]) -> tuple[Mark, str]:
    if "proa.attempt" in span.attributes:
        return _attempt(span, reply_ns)
    if span.error is not None:
        return Mark.FAILED, f"failed: {failure(span)}"
    if span.name == PARITY:
        return (Mark.WON, "used") if span.key in used else (Mark.NONE, "not needed")
    if span.name.startswith("inference.") and span.kind is Kind.SERVER:
        return Mark.NONE, _answered_by(span)
    if span.name == DECODE:
        return Mark.WON, f"{span.text('proa.missing', '1')} missing"
    return Mark.NONE, ""


def _attempt(span: Span, reply_ns: int) -> tuple[Mark, str]:
    if span.flag("proa.won"):
        return Mark.WON, "won"
    if span.flag("proa.cancelled"):
        return Mark.LATE, "late, given up"
    if span.error is not None:
        return Mark.FAILED, f"failed: {failure(span)}"
    after_ms = (span.end_ns - reply_ns) / 1e6
    if after_ms < 0.05:
        return Mark.NONE, "not used"  # as in a drill
    return Mark.LATE, f"late by {after_ms:.1f} ms"


def _answered_by(span: Span) -> str:
    source, worker = span.text("proa.source"), span.text("proa.worker")
    if source == "reconstructed" or not worker:
        return source
    return f"{source}, {worker}" if source in REDUNDANT else worker
