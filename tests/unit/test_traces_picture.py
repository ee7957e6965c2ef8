"""The pictures: the terminal's to the letter, the page's safety, the JSON's shape."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from fakes import stories
from fakes.stories import REQUEST, changed
from proa.traces.axis import ticks
from proa.traces.book import Book
from proa.traces.page import page, write_page
from proa.traces.spans import Span
from proa.traces.story import assemble
from proa.traces.terminal import ASCII, UNICODE, WIDTH_MIN, Picture, print_view
from proa.traces.view import Mark, View, to_json, view

GOLDEN = Path(__file__).parent / "golden" / "trace.txt"
HOSTILE = '</text></svg><script src="http://x/y.js">alert(1)</script>"\'&'


def shown(spans: list[Span]) -> View:
    book = Book()
    book.add(spans, 0.0)
    story = assemble(book, (REQUEST, f"{1:016x}"))
    assert story is not None
    return view(story)


def printed(spans: list[Span], encoding: str = "utf-8") -> str:
    """As into a pipe."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, write_through=True) as file:
        print_view(shown(spans), Console(file=file, highlight=False))
        return raw.getvalue().decode(encoding)


def test_the_terminals_picture() -> None:
    """After a change that is meant: write the new picture there, and look at it."""
    assert printed(stories.reconstructed()) == GOLDEN.read_text(encoding="utf-8")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = printed(stories.reconstructed(), encoding="ascii")
    assert "====" in text
    assert "x failed" in text


@pytest.mark.parametrize("width", [20, 60, 79, 80, 81, 120, 400])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_no_line_is_wider_than_the_terminal(width: int, glyphs: object) -> None:
    spans = changed(stories.reconstructed(), 2, attributes={"proa.worker": "宽" * 60})
    lines = Picture(shown(spans), width, glyphs).lines()
    assert max(cell_len(line.plain) for line in lines) <= max(width, WIDTH_MIN)


def test_colour_is_only_for_terminals() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, highlight=False)
    print_view(shown(stories.reconstructed()), console)
    assert "\x1b[" in out.getvalue()
    assert "\x1b[" not in printed(stories.reconstructed())


def test_marks_say_who_won_and_who_was_late() -> None:
    marks = {row.label: (row.mark, row.note) for row in shown(stories.reconstructed()).rows()}
    assert marks["w1"] == (Mark.WON, "won")
    assert marks["w2"] == (Mark.LATE, "late, given up")
    assert marks["parity query, w3"] == (Mark.WON, "used")
    assert marks["decode"] == (Mark.WON, "1 missing")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"error": "gone"}, (Mark.FAILED, "failed: gone")),
        ({"end_ns": stories.T0_NS + 40_000_000}, (Mark.LATE, "late by 7.1 ms")),
        ({}, (Mark.NONE, "not used")),
    ],
)
def test_what_becomes_of_an_attempt(change: dict[str, object], expected: object) -> None:
    spans = changed(stories.reconstructed(), 2, attributes={"proa.cancelled": False}, **change)
    (row,) = (row for row in shown(spans).rows() if row.label == "w2")
    assert (row.mark, row.note) == expected


def test_a_span_of_another_clock_does_not_squeeze_the_picture() -> None:
    far = stories.T0_NS + 3_600_000_000_000
    there = shown(changed(stories.reconstructed(), 1, trace=stories.MEMBER, end_ns=far))
    assert there.last_ms < 100
    assert "»" in "\n".join(line.plain for line in Picture(there, 100).lines())
    before = shown(changed(stories.reconstructed(), 1, trace=stories.PARITY, start_ns=0))
    assert before.first_ms > -100
    long_ago = stories.T0_NS - 60_000_000_000
    gone = changed(stories.reconstructed(), 2, stories.MEMBER, start_ns=long_ago, end_ns=long_ago)
    row = next(line.plain for line in Picture(shown(gone), 100).lines() if " w1 " in line.plain)
    assert "«" in row
    assert row.endswith("until -60000.0 ms")
    assert page(before)


def test_a_request_that_took_no_time_can_be_drawn() -> None:
    root = replace(stories.reconstructed()[0], end_ns=stories.T0_NS)
    assert Picture(shown([root]), 80).lines()
    assert "<svg" in page(shown([root]))


class Outline(HTMLParser):
    """The elements, and what would load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.suspicious: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        bad = {"src", "href", "xlink:href", "action", "srcset"}
        self.suspicious += [(k, v) for k, v in attrs if k in bad or k.startswith("on")]


def hostile() -> list[Span]:
    """Everything a sender can name is HTML."""
    return [
        replace(
            one,
            name=one.name if one.name.startswith(("proa.", "inference.")) else HOSTILE,
            service=HOSTILE,
            error=HOSTILE if one.span_id.endswith("2") else None,
            events=tuple((at_ns, HOSTILE) for at_ns, _ in one.events),
            attributes={
                **{k: v if isinstance(v, int) else HOSTILE for k, v in one.attributes.items()},
                HOSTILE: HOSTILE,
            },
        )
        for one in stories.reconstructed()
    ]


def test_hostile_names_stay_text() -> None:
    text = page(shown(hostile()))
    outline = Outline()
    outline.feed(text)
    assert "<script" not in text
    assert outline.tags.isdisjoint({"script", "iframe", "object", "img", "link", "base"})
    assert outline.suspicious == []
    assert "&lt;script" in text


def test_the_page_is_whole_and_for_everybody() -> None:
    text = page(shown(stories.reconstructed()))
    outline = Outline()
    outline.feed(text)
    assert "prefers-color-scheme: dark" in text
    assert 'lang="en"' in text
    assert 'role="img" aria-label="reconstructed from group 17' in text
    assert text.count("<title>") == 1 + 13 + 2  # the page, each span, each event
    assert len(re.findall(r"<tr><td", text)) == 13
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_is_a_file(tmp_path: Path) -> None:
    path = write_page(shown(stories.reconstructed()), tmp_path / "new" / "folder")
    assert path.name == "trace.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_json_has_the_story() -> None:
    tree = json.loads(json.dumps(to_json(shown(stories.reconstructed()))))
    assert tree["source"] == "reconstructed"
    assert tree["group"] == 17
    assert tree["reply_ms"] == 32.9
    titles = [section["title"] for section in tree["sections"]]
    assert titles == ["this request", "member 1", "parity row 0"]
    parity = tree["sections"][2]["spans"][0]
    assert parity["attributes"]["proa.k"] == 2
    assert {link["trace_id"] for link in parity["links"]} == {stories.REQUEST, stories.MEMBER}
    assert [event["name"] for event in parity["events"]] == ["sent", "answered"]


@pytest.mark.parametrize(
    ("first", "last", "most", "expected"),
    [
        (0, 32.9, 4, [0, 10, 20, 30]),
        (-2, 33, 8, [0, 5, 10, 15, 20, 25, 30]),
        (-12, 33, 8, [-10, 0, 10, 20, 30]),
        (0, 0.35, 4, [0, 0.1, 0.2, 0.3]),
        (0, 0, 3, [0]),
        (0, 950, 1, [0]),
    ],
)
def test_ticks_are_round_numbers(
    first: float, last: float, most: int, expected: list[float]
) -> None:
    assert ticks(first, last, most) == pytest.approx(expected)
