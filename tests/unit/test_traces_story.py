"""From spans to stories: links both ways, limits, when a story is told, what it says."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from fakes import stories
from fakes.stories import INFER, MEMBER, PARITY, REQUEST, changed, span
from proa.telemetry.spans import Kind
from proa.traces.book import Book
from proa.traces.choice import WANTS, Choice
from proa.traces.spans import Span
from proa.traces.story import Story, assemble
from proa.traces.verdict import verdict

FIRST = f"{1:016x}"
FAILED = {"rpc.response.status_code": "UNAVAILABLE"}


def book_of(spans: Iterable[Span]) -> Book:
    book = Book()
    book.add(spans, 0.0)
    return book


def told(spans: Iterable[Span]) -> Story:
    story = assemble(book_of(spans), (REQUEST, FIRST))
    assert story is not None
    return story


def ids(spans: Iterable[Span]) -> set[tuple[str, str]]:
    return {one.key for one in spans}


def plain(source: str = "worker") -> list[Span]:
    """Answered by w1, without a group."""
    return [
        span(
            REQUEST, 1, INFER, 0, 12.5, kind=Kind.SERVER, proa_model="digits", proa_source=source,
            proa_worker="w1",
        ),
        span(
            REQUEST, 2, INFER, 1, 12, parent=1, kind=Kind.CLIENT, proa_attempt=2, proa_kind=source,
            proa_worker="w1", proa_won=True,
        ),
    ]  # fmt: skip


def second(**more: object) -> Span:
    """An attempt on w0 that did not win."""
    return span(
        REQUEST, 3, INFER, 0.2, 12, parent=1, kind=Kind.CLIENT, proa_attempt=1,
        proa_kind="worker", proa_worker="w0", proa_won=False, **more,
    )  # fmt: skip


def test_the_whole_story_in_whatever_order_it_comes() -> None:
    spans = stories.reconstructed()
    for seed in range(20):
        random.Random(seed).shuffle(spans)
        story = told(spans)
        assert ids(story.spans()) == ids(spans), f"seed {seed}"
        assert [branch.root.key for branch in story.used] == [(PARITY, FIRST)]
        assert [branch.root.key for branch in story.members] == [(MEMBER, FIRST)]


def test_the_members_story_has_the_same_parity() -> None:
    story = assemble(book_of(stories.reconstructed()), (MEMBER, FIRST))
    assert story is not None
    assert [branch.root.key for branch in story.members] == [(REQUEST, FIRST)]
    assert [branch.root.key for branch in story.parities] == [(PARITY, FIRST)]
    assert story.used == ()


def test_the_decodes_link_alone_finds_the_parity() -> None:
    spans = [
        replace(s, links=()) if s.name == "proa.parity" else s for s in stories.reconstructed()
    ]
    story = told(spans)
    assert len(story.used) == 1
    assert story.members == ()


def test_being_a_filler_of_a_later_group_is_another_story() -> None:
    later = span(
        "d4" * 16, 1, "proa.parity", 50, 70, proa_group=18, proa_k=2, proa_row=0, proa_fillers=1,
        links=((MEMBER, FIRST), (REQUEST, FIRST)),
    )  # fmt: skip
    assert later not in told([*stories.reconstructed(), later]).spans()
    other = assemble(book_of([*stories.reconstructed(), later]), (MEMBER, FIRST))
    assert other is not None
    assert [parity.root.text("proa.group") for parity in other.parities] == ["17", "18"]
    assert [other.member_name(member) for member in other.members] == ["member 0"]


def test_a_filler_is_called_one() -> None:
    spans = changed(stories.reconstructed(), 1, trace=PARITY, attributes={"proa.fillers": 1})
    story = told(spans)
    assert [story.member_name(member) for member in story.members] == ["filler 1"]
    assert verdict(story).endswith("parity row 0 on w3 and filler 1 were there at 31.2 ms")


def test_a_filler_may_itself_have_been_reconstructed() -> None:
    """Its worker answered later, which is what it is good for now."""
    spans = changed(stories.reconstructed(), 1, trace=PARITY, attributes={"proa.fillers": 1})
    spans = changed(spans, 2, trace=MEMBER, attributes={"proa.won": False})
    assert "filler 1 were there at 31.2 ms" in verdict(told(spans))


def test_two_requests_in_one_trace_have_each_their_own_story() -> None:
    app = span(REQUEST, 9, "app", 0, 99)
    other = [replace(s, span_id="f" + s.span_id[1:], parent_id=app.span_id) for s in plain()[:1]]
    own = [changed(plain(), 1, parent_id=app.span_id)[0], plain()[1]]
    assert ids(told([app, *own, *other]).spans()) == ids(own)


def test_the_callers_span_belongs_to_the_story() -> None:
    call = span(REQUEST, 9, INFER, -1, 14, kind=Kind.CLIENT)
    assert told([call, *changed(plain(), 1, parent_id=call.span_id)]).caller == call


def test_spans_that_are_each_others_parent_end_the_walk() -> None:
    a, b = span(REQUEST, 5, "a", 0, 1, parent=6), span(REQUEST, 6, "b", 0, 1, parent=5)
    loop = [replace(plain()[0], parent_id=b.span_id), a, replace(b, parent_id=FIRST)]
    assert len(told(loop).request.spans) == 3


def test_no_story_of_a_request_that_is_not_known() -> None:
    assert assemble(book_of(stories.reconstructed()), ("f" * 32, FIRST)) is None


@pytest.mark.parametrize(
    ("spans", "sentence"),
    [
        (
            stories.reconstructed(),
            ("reconstructed from group 17 (k=2): w2 was late, parity row 0 on w3 and member 1 were"
            " there at 31.2 ms"),
        ),
        (
            changed(
                stories.reconstructed(), 2, error="gone",
                attributes={**FAILED, "proa.cancelled": False},
            ),
            ("reconstructed from group 17 (k=2): w2 failed (UNAVAILABLE), parity row 0 on w3 and"
            " member 1 were there at 31.2 ms"),
        ),
        (
            [s for s in stories.reconstructed() if s.trace_id == REQUEST],
            "reconstructed from group 17 after 32.9 ms: w2 was late",
        ),
        (
            changed(stories.reconstructed(), 2, attributes={"proa.cancelled": False}),
            ("reconstructed from group 17 (k=2): the answer of w2 was not used, parity row 0 on w3"
            " and member 1 were there at 31.2 ms"),
        ),
        (plain(), "answered by w1 after 12.5 ms"),
        (
            changed(plain(), 1, attributes={"rpc.response.status_code": "INVALID_ARGUMENT"})[:1],
            "failed with INVALID_ARGUMENT after 12.5 ms",
        ),
        (
            [*plain("hedge"), second(proa_cancelled=True)],
            "answered by the hedge on w1 after 12.5 ms: w0 was late",
        ),
        (
            [*plain("retry"), second(error="gone")],
            "answered by the retry on w1 after 12.5 ms: w0 failed (gone)",
        ),
        (
            [
                changed(plain(), 1, error="too late", attributes={"error.type": "TIMEOUT"})[0],
                second(proa_cancelled=True),
            ],
            "failed with TIMEOUT after 12.5 ms: w0 was late",
        ),
        (
            changed(
                changed(
                    [s for s in stories.reconstructed() if s.name != "proa.decode"], 1,
                    attributes={"proa.source": "worker", "proa.worker": "w2"},
                ), 2, attributes={"proa.won": True, "proa.cancelled": False},
            ),
            "answered by w2 after 32.9 ms; the parity of group 17 (k=2) was not needed",
        ),
    ],
)  # fmt: skip
def test_the_verdict(spans: list[Span], sentence: str) -> None:
    assert verdict(told(spans)) == sentence


def test_a_story_is_told_once_when_it_came_to_rest() -> None:
    book = Book()
    choice = Choice(book, "any", settle_s=2.0)
    request, rest = stories.reconstructed()[0], stories.reconstructed()[1:]
    book.add([request], 10.0)
    assert choice.take(11.9) == []
    book.add(rest, 11.9)
    assert choice.take(13.8) == []  # the parity came later than the request itself
    found = choice.take(13.95)
    assert [story.root.trace_id for story in found] == [REQUEST, MEMBER]
    assert choice.take(99.0) == []
    book.add([request], 100.0)  # an exporter's second try
    assert choice.take(200.0) == []
    assert choice.seen == 2


def test_only_what_is_wanted_is_told() -> None:
    def sources(want: str, trace: str = "") -> list[str]:
        choice = Choice(book_of(stories.reconstructed()), want, 1.0, trace)
        found = [story.source for story in choice.take(5.0)]
        assert choice.seen == 2
        return found

    assert sources("any") == ["reconstructed", "worker"]
    assert sources("reconstructed") == ["reconstructed"]
    assert [want for want in WANTS if sources(want)] == ["any", "reconstructed"]
    assert sources("any", MEMBER[:6]) == ["worker"]
    assert sources("any", "ffff") == []


@pytest.mark.parametrize(
    ("want", "change"),
    [
        ("failed", {"error": "gone"}),
        ("slow", {"attributes": {"proa.kept": "sampled,slow"}}),
        ("hedge", {"attributes": {"proa.source": "hedge"}}),
    ],
)
def test_each_kind_can_be_wanted(want: str, change: dict[str, object]) -> None:
    book = book_of(changed(plain(), 1, **change))
    assert len(Choice(book, want, 1.0).take(5.0)) == 1


def test_the_oldest_traces_are_forgotten_first() -> None:
    book = Book(traces_max=3)
    requests = [replace(plain()[0], trace_id=f"{i:032x}") for i in range(1, 6)]
    for one in requests:
        book.add([one, replace(plain()[1], trace_id=one.trace_id)], 0.0)
    assert [book.get(one.key) is not None for one in requests] == [False, False, True, True, True]
    assert len(book) == 6
    assert book.dropped == 4
    assert list(book.waiting) == [one.key for one in requests[2:]]


def test_spans_are_bounded_in_a_trace_and_in_all() -> None:
    book = Book(spans_max=10, trace_spans_max=4)
    book.add([span(REQUEST, i, "x", 0, 1) for i in range(1, 10)], 0.0)
    assert (len(book), book.dropped) == (4, 5)
    for i in range(1, 40):
        book.add([span(f"{i:032x}", 1, "x", 0, 1)], 0.0)
    assert len(book) == 10


def test_links_of_what_is_forgotten_are_forgotten() -> None:
    book = Book(traces_max=1)
    parity = next(s for s in stories.reconstructed() if s.name == "proa.parity")
    book.add([parity], 0.0)
    assert book.linking_to((REQUEST, FIRST)) == [parity]
    book.add(plain(), 0.0)
    assert book.linking_to((REQUEST, FIRST)) == []
    assert book._linking == {}


def test_spans_with_much_text_count_for_several() -> None:
    book = Book(spans_max=100)
    text = {f"key{i}": "v" * 256 for i in range(32)}
    for i in range(1, 101):
        book.add([replace(plain()[0], trace_id=f"{i:032x}", attributes=text)], 0.0)
    assert len(book) == 11
