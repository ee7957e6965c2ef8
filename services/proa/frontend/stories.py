"""What the request path notes of a request: times and names in plain slots.

A `Story` and its parts cost next to nothing. Spans are made of them when the request is over, and
only if it is told (`frontend.tracing`). Times are unix ns; 0: not yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Container, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from proa.dispatch import actions as ac
from proa.errors import ProaError
from proa.frontend.addresses import WorkerAddress
from proa.telemetry import TraceContext, child_of, new_context

if TYPE_CHECKING:
    from proa.frontend.models import Model

CANCELLED = "CANCELLED"
REASON_CHARS_MAX = 256

# Stands for a part where nothing is noted.
QUIET = contextlib.nullcontext()


class Teller(Protocol):
    """Who makes spans of stories, and the lines of the request log."""

    def tell(self, story: Story) -> None:
        """This story is over. Tell it if it is worth it."""

    def tell_late(self, story: Story, part: Try | Decoding) -> None:
        """A part of a story that has been told is over now."""

    def tell_row(self, row: Row) -> None:
        """A parity row is over, and belongs to a story that was told."""

    def tell_beside(self, story: Story) -> None:
        """Tell this story as well, now or when it is over: another one needs it."""


class Part:
    """Something that takes time, as a context manager around it: gives the context that calls made
    within carry, None where they carry none. `failure`: status name and reason."""

    __slots__ = ("context", "end_ns", "failure", "start_ns")

    def __init__(self, context: TraceContext | None) -> None:
        self.context = context
        self.start_ns = 0
        self.end_ns = 0
        self.failure: tuple[str, str] | None = None

    def __enter__(self) -> TraceContext | None:
        self.start_ns = time.time_ns()
        return self.sent

    def __exit__(
        self, _kind: object, exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # The wall clock may be set back meanwhile.
        self.end_ns = max(time.time_ns(), self.start_ns)
        if exc is not None:
            self.failure = _failure(exc)
        self.over()

    @property
    def sent(self) -> TraceContext | None:
        """Only the calls of a sampled request carry a context: Triton traces all that do."""
        return self.context if self.context is not None and self.context.sampled else None

    def over(self) -> None:
        """It has just ended."""


class Try(Part):
    """One attempt at a request. `number`: the engine's; `kind`: worker, retry, replica, hedge."""

    __slots__ = ("kind", "number", "story", "worker")

    def __init__(self, story: Story, number: int, kind: str, worker: WorkerAddress) -> None:
        context = story.context
        traced = context is not None and context.sampled
        super().__init__(child_of(context) if traced and context is not None else None)
        self.story: Story | None = story
        self.number = number
        self.kind = kind
        self.worker = worker

    def over(self) -> None:
        story, self.story = self.story, None  # they hold each other
        if story is not None and story.told:
            story.teller.tell_late(story, self)


class Call(Part):
    """A call to an encoder or decoder. `method`: its full name."""

    __slots__ = ("address", "method")

    def __init__(self, context: TraceContext, method: str, address: str) -> None:
        super().__init__(context)
        self.method = method
        self.address = address


class Step(Part):
    """A part with calls of its own."""

    __slots__ = ("calls",)

    context: TraceContext

    def __init__(self, context: TraceContext) -> None:
        super().__init__(context)
        self.calls: tuple[Call, ...] = ()

    def call(self, method: str, address: str) -> Call:
        """A call that this step makes."""
        made = Call(child_of(self.context), method, address)
        self.calls = (*self.calls, made)
        return made


class Row(Step):
    """One parity row of a group, a trace of its own. `links`: the requests of all positions,
    fillers as well; `members`: the stories of those that are no fillers, until all are over."""

    __slots__ = (
        *("fillers", "formed_ns", "group", "links", "members", "r", "row", "teller"),
        *("told", "wanted", "worker"),
    )

    def __init__(
        self, action: ac.SendParity, r: int, worker: WorkerAddress, stories: Sequence[Story]
    ) -> None:
        found = zip(action.members, stories, strict=True)
        self.members = tuple(story for query, story in found if query not in action.fillers)
        super().__init__(new_context(sampled=any(story.sampled for story in self.members)))
        self.teller = stories[0].teller
        self.formed_ns = time.time_ns()
        self.links = tuple(story.context for story in stories if story.context is not None)
        self.fillers = len(action.fillers)
        self.group = action.group
        self.row = action.row
        self.r = r
        self.worker = worker
        self.wanted = any(story.told for story in self.members)
        self.told = False

    def over(self) -> None:
        self._tell()
        self.member_over()

    def want(self) -> None:
        """Tell it, now or when it is over."""
        self.wanted = True
        self._tell()

    def member_over(self) -> None:
        """Hold no stories that nobody waits for: they hold this row."""
        if self.end_ns and all(story.end_ns for story in self.members):
            self.members = ()

    def _tell(self) -> None:
        if self.wanted and self.end_ns and not self.told:
            self.told = True
            self.teller.tell_row(self)


class Decoding(Step):
    """One decoding, for `stories`. It and its calls belong to the request whose span is `parent`.
    `links`: the parity rows used."""

    __slots__ = ("group", "links", "missing", "parent", "stories")

    def __init__(self, action: ac.Decode, stories: Sequence[Story], rows: Container[int]) -> None:
        first = stories[0]
        assert first.context is not None
        super().__init__(child_of(first.context))
        self.parent = first.context.span_id
        self.stories = tuple(stories)
        self.group = action.group
        self.missing = len(action.missing)
        used = (row for row in first.rows if row.group == action.group and row.row in rows)
        self.links = tuple(row.context for row in used)

    def over(self) -> None:
        stories, self.stories = self.stories, ()  # they hold each other
        for story in stories:
            if story.told:
                story.teller.tell_late(story, self)


class Story:
    """One request. `context`: its span, None without tracing; `parent`: span id of the caller's.

    `kept`: why it is told, besides by chance; `beside`: another story needs it; `told`: it was.
    """

    __slots__ = (
        *("teller", "context", "parent", "start_ns", "end_ns", "status", "reason"),
        *("model", "served", "tenant", "policy", "exact", "query", "position"),
        *("tries", "rows", "decodings", "won", "source", "worker", "group"),
        *("kept", "beside", "told"),
    )

    def __init__(self, teller: Teller, context: TraceContext | None, parent: int | None) -> None:
        self.teller = teller
        self.context = context
        self.parent = parent
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self.status = ""
        self.reason = ""
        self.model = ""
        self.served: Model | None = None
        self.tenant = ""
        self.policy: str | None = None
        self.exact = False
        self.query = 0
        self.position = -1
        self.tries: tuple[Try, ...] = ()
        self.rows: tuple[Row, ...] = ()
        self.decodings: tuple[Decoding, ...] = ()
        self.won: int | None = None
        self.source = ""
        self.worker: str | None = None
        self.group: int | None = None
        self.kept: tuple[str, ...] = ()
        self.beside = False
        self.told = False

    @property
    def sampled(self) -> bool:
        """Whether it was chosen before anything was known of it."""
        return self.context is not None and self.context.sampled

    def attempt(self, number: int, kind: str, worker: WorkerAddress) -> Try:
        """It is sent to `worker`."""
        made = Try(self, number, kind, worker)
        self.tries = (*self.tries, made)
        return made

    def replied(self, action: ac.Reply) -> None:
        """It has its answer."""
        self.won = action.attempt
        self.source = action.source.value
        self.worker = action.worker
        self.group = action.group

    def end(self, status: str, reason: str) -> None:
        """It is over with this gRPC status. `reason`: of a failure, for who reads it."""
        self.end_ns = max(time.time_ns(), self.start_ns)
        self.status = status
        self.reason = reason[:REASON_CHARS_MAX]
        self.teller.tell(self)
        for row in self.rows:
            row.member_over()

    def count(self, kind: str) -> int:
        """How many attempts of this kind there were."""
        return sum(1 for one in self.tries if one.kind == kind)


def row_of(
    action: ac.SendParity, r: int, worker: WorkerAddress, stories: Sequence[Story | None]
) -> Row | None:
    """The parity row (of `r`) that `action` sends, noted in the stories of its members. `stories`:
    by position; None: nothing is noted, or nothing traced."""
    traced = [story for story in stories if story is not None and story.context is not None]
    if len(traced) < len(stories):
        return None
    made = Row(action, r, worker, traced)
    for position, story in enumerate(traced):
        if action.members[position] not in action.fillers:
            story.position = position
            story.group = action.group
            story.rows = (*story.rows, made)
    return made


def decoding_of(
    action: ac.Decode, stories: Sequence[Story | None], rows: Container[int]
) -> Decoding | None:
    """The same for a decoding. `stories`: of the missing positions; `rows`: of parity, used."""
    waiting = [s for s in stories if s is not None and s.context is not None and not s.end_ns]
    if not waiting:
        return None
    # The decoder is told of one request: a sampled one, so that it is told at all.
    waiting.sort(key=lambda story: not story.sampled)
    made = Decoding(action, waiting, rows)
    for story in waiting:
        story.decodings = (*story.decodings, made)
    return made


def _failure(exc: BaseException) -> tuple[str, str]:
    if isinstance(exc, asyncio.CancelledError):
        return CANCELLED, "given up"
    status = exc.status if isinstance(exc, ProaError) else "INTERNAL"
    return status, (str(exc) or type(exc).__name__)[:REASON_CHARS_MAX]
