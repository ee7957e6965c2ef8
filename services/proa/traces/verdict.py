"""One sentence on a story: who answered, when, and why not somebody else."""

from __future__ import annotations

from collections.abc import Sequence

from proa.traces.spans import Span
from proa.traces.story import Branch, Story


def verdict(story: Story) -> str:
    """The sentence, without a full stop."""
    source = story.source
    if source == "failed":
        return _failed(story)
    if source == "reconstructed":
        return _reconstructed(story)
    return _answered(story)


def failure(span: Span) -> str:
    """Why a span failed, in as few words as it knows."""
    for name in ("rpc.response.status_code", "error.type"):
        if word := span.text(name):
            return word
    return span.error or ""


def _reconstructed(story: Story) -> str:
    what = f"reconstructed{_group(story)}"
    missing = _listed([_fate(span, story) for span in story.request.attempts()])
    parts = [(_parity_name(branch), branch.root.end_ns) for branch in story.used]
    parts += [
        (story.member_name(branch), answered_ns)
        for branch in story.members
        if (answered_ns := branch.answered_ns()) is not None
    ]
    if not parts:
        return f"{what} after {story.root.duration_ms:.1f} ms: {missing or 'no worker was asked'}"
    ready_ms = (max(end_ns for _, end_ns in parts) - story.root.start_ns) / 1e6
    names = _listed([name for name, _ in parts])
    there = f"{names} {'was' if len(parts) == 1 else 'were'} there at {ready_ms:.1f} ms"
    return f"{what}: {missing}, {there}" if missing else f"{what}: {there}"


def _answered(story: Story) -> str:
    root = story.root
    source, worker = story.source, root.text("proa.worker")
    by = f"{worker or source}" if source == "worker" else f"the {source} on {worker or '?'}"
    what = f"answered by {by} after {root.duration_ms:.1f} ms"
    others = [span for span in story.request.attempts() if not span.flag("proa.won")]
    if others:
        return f"{what}: {_listed([_fate(span, story) for span in others])}"
    if story.parities:
        return f"{what}; the parity{_group(story, ' of ')} was not needed"
    return what


def _failed(story: Story) -> str:
    root = story.root
    what = f"failed with {failure(root)} after {root.duration_ms:.1f} ms"
    fates = [_fate(span, story) for span in story.request.attempts()]
    fates += [
        f"{_parity_name(branch)} failed ({failure(branch.root)})"
        for branch in story.parities
        if branch.root.error is not None
    ]
    return f"{what}: {_listed(fates)}" if fates else what


def _fate(span: Span, story: Story) -> str:
    """`w2 was late`."""
    kind, worker = span.text("proa.kind", "worker"), span.text("proa.worker", "?")
    name = worker if kind == "worker" else f"the {kind} on {worker}"
    if span.flag("proa.won"):
        return f"{name} answered"
    if span.error is not None and not span.flag("proa.cancelled"):
        return f"{name} failed ({failure(span)})"
    if not span.flag("proa.cancelled") and span.end_ns <= story.root.end_ns:
        return f"the answer of {name} was not used"
    return f"{name} was late"


def _group(story: Story, word: str = " from ") -> str:
    """` from group 17 (k=2)`."""
    group = story.root.text("proa.group")
    k = next((branch.root.text("proa.k") for branch in story.parities), "")
    if not group:
        return ""
    return f"{word}group {group} (k={k})" if k else f"{word}group {group}"


def _parity_name(branch: Branch) -> str:
    return (
        f"parity row {branch.root.text('proa.row', '?')} on {branch.root.text('proa.worker', '?')}"
    )


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
