"""A request's story: its own spans, its group's parity, the other members of the group.

They are traces of their own. The parity span links to the requests it was made of, and a decode
span links to the parity it used: the links are followed both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proa.telemetry.spans import Kind
from proa.traces.book import Book, Heard, is_request
from proa.traces.spans import Span, SpanKey

BRANCH_SPANS_MAX = 512
BRANCHES_MAX = 64

PARITY, DECODE = "proa.parity", "proa.decode"


@dataclass(frozen=True, slots=True)
class Branch:
    """A span and all below it: (depth, span) depth first, siblings by their start."""

    spans: tuple[tuple[int, Span], ...]

    @property
    def root(self) -> Span:
        return self.spans[0][1]

    def attempts(self) -> list[Span]:
        """The calls that were made to answer it, in their order."""
        root = self.root
        return [
            span
            for _, span in self.spans
            if "proa.attempt" in span.attributes and span.parent_id == root.span_id
        ]

    def winner(self) -> Span | None:
        """The attempt whose answer it got, if one of them did."""
        return next((span for span in self.attempts() if span.flag("proa.won")), None)

    def answered_ns(self) -> int | None:
        """When a worker first answered, whether or not that answer was the one given."""
        ends = [
            span.end_ns
            for span in self.attempts()
            if span.error is None and not span.flag("proa.cancelled")
        ]
        return min(ends, default=None)

    def decodes(self) -> list[Span]:
        return [span for _, span in self.spans if span.name == DECODE]


@dataclass(frozen=True, slots=True)
class Story:
    """`caller`: the client's own span. `heard_s`: when the last of it came."""

    request: Branch
    caller: Span | None
    parities: tuple[Branch, ...]
    members: tuple[Branch, ...]
    heard_s: float

    @property
    def root(self) -> Span:
        return self.request.root

    @property
    def source(self) -> str:
        """Who answered: worker, retry, replica, hedge, reconstructed; "failed" if nobody."""
        status = self.root.text("rpc.response.status_code", "OK")
        failed = self.root.error is not None or status != "OK"
        return "failed" if failed else self.root.text("proa.source", "unknown")

    @property
    def used(self) -> tuple[Branch, ...]:
        """The parity that the answer was decoded from."""
        links = {key for decode in self.request.decodes() for key in decode.links}
        return tuple(branch for branch in self.parities if branch.root.key in links)

    def member_name(self, member: Branch) -> str:
        """`member 1`, by its position; a filler is a request that was answered before."""
        for parity in self.parities:
            links = parity.root.links
            if member.root.key in links:
                position = links.index(member.root.key)
                return f"{'member' if position < own_count(parity.root) else 'filler'} {position}"
        return "member"

    def spans(self) -> Iterator[Span]:
        """All of it."""
        if self.caller is not None:
            yield self.caller
        for branch in (self.request, *self.members, *self.parities):
            yield from (span for _, span in branch.spans)


def own_count(parity: Span) -> int:
    """How many of its links, the first ones, are requests of its group. The others are fillers."""
    fillers = parity.attributes.get("proa.fillers", 0)
    return len(parity.links) - (fillers if isinstance(fillers, int) else 0)


def assemble(book: Book, key: SpanKey) -> Story | None:
    """The story of the request span `key` as far as it is known; None if it is not."""
    found = book.get(key)
    if found is None:
        return None
    heard: list[Heard] = []
    request = _branch(book, found, heard)
    parents = book.get((key[0], found.span.parent_id))
    caller = parents if parents is not None and parents.span.kind is Kind.CLIENT else None
    parities = [_branch(book, one, heard) for one in _parities(book, request)]
    members = [_branch(book, one, heard) for one in _members(book, parities, key)]
    if caller is not None:
        heard.append(caller)
    return Story(
        request=request,
        caller=caller.span if caller else None,
        parities=tuple(parities),
        members=tuple(members),
        heard_s=max(one.at_s for one in heard),
    )


def _branch(book: Book, root: Heard, heard: list[Heard]) -> Branch:
    """The tree below `root`. Another request below it has a story of its own."""
    spans: list[tuple[int, Span]] = []
    seen: set[str] = set()
    stack = [(0, root)]
    while stack and len(spans) < BRANCH_SPANS_MAX:
        depth, one = stack.pop()
        if one.span.span_id in seen or (depth and is_request(one.span)):
            continue
        seen.add(one.span.span_id)
        heard.append(one)
        spans.append((depth, one.span))
        stack += [(depth + 1, child) for child in reversed(book.children(one.span))]
    return Branch(tuple(spans))


def _parities(book: Book, request: Branch) -> list[Heard]:
    # A later group may have had this request for a filler: that is no part of its story.
    linking = [
        span.key
        for span in book.linking_to(request.root.key)
        if span.name == PARITY and request.root.key in span.links[: own_count(span)]
    ]
    decoded = [key for decode in request.decodes() for key in decode.links]
    found = [book.get(key) for key in dict.fromkeys([*linking, *decoded])]
    kept = [one for one in found if one is not None and one.span.name == PARITY]
    kept.sort(key=lambda one: (one.span.text("proa.row"), one.span.start_ns))
    return kept[:BRANCHES_MAX]


def _members(book: Book, parities: list[Branch], own: SpanKey) -> list[Heard]:
    keys = dict.fromkeys(key for parity in parities for key in parity.root.links if key != own)
    found = [book.get(key) for key in keys]
    return [one for one in found if one is not None and is_request(one.span)][:BRANCHES_MAX]
