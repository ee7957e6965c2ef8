"""The picture in a terminal: as wide as it is, readable without colour and in ASCII."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from proa.traces.axis import ticks
from proa.traces.view import Mark, Role, Row, View

WIDTH_MIN, WIDTH_MAX, WIDTH_OF_FILES = 60, 160, 110
LABEL_CELLS_MAX, NOTE_CELLS_MAX, MS_CELLS = 32, 26, 9
NOTES_FROM = 80  # narrower terminals show a mark only
TICK_CELLS = 8

_STYLES = {
    Role.REQUEST: "cyan",
    Role.WORKER: "default",
    Role.REDUNDANT: "green",
    Role.CODING: "yellow",
    Role.INNER: "bright_black",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    bar: str
    inner: str
    late: str
    failed: str
    reply: str
    won: str
    cut: str
    before: str


UNICODE = Glyphs(bar="━", inner="─", late="╌", failed="✗", reply="┊", won="✓", cut="»", before="«")
ASCII = Glyphs(bar="=", inner="-", late=".", failed="x", reply=":", won="*", cut=">", before="<")


def print_view(view: View, console: Console) -> None:
    """Print the picture of one story."""
    width = console.width if console.is_terminal else WIDTH_OF_FILES
    unicode = (console.encoding or "").lower().replace("-", "").startswith("utf")
    for line in Picture(view, width, UNICODE if unicode else ASCII).lines():
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


class Picture:
    """Lines of text no wider than `width` (at least 60 cells)."""

    def __init__(self, view: View, width: int, glyphs: Glyphs = UNICODE) -> None:
        self._view = view
        self._glyphs = glyphs
        self._width = min(max(width, WIDTH_MIN), WIDTH_MAX)
        rows = view.rows()
        widest = max(cell_len(row.label) + 2 * row.depth for row in rows) + 3
        self._label = min(widest, LABEL_CELLS_MAX, self._width // 3)
        notes = max(cell_len(view.note(row)) for row in rows) + 2
        self._note = min(notes, NOTE_CELLS_MAX) if self._width >= NOTES_FROM else 0
        self._bars = self._width - self._label - MS_CELLS - 3 - self._note
        self._scale = (self._bars - 1) / max(view.last_ms - view.first_ms, 1e-6)

    def lines(self) -> list[Text]:
        """The verdict, the facts, the axis, the rows, what the signs mean."""
        view = self._view
        found = [
            *self._wrapped(view.verdict.split(), "bold"),
            *self._wrapped(view.facts.split(), "dim"),
            Text(),
        ]
        found.append(self._axis())
        for section in view.sections:
            found.append(Text(self._fit(section.title), style="bold"))
            found += [self._row(row) for row in section.rows]
        return [*found, Text(), *self._wrapped(self._key(), "dim", gap="   ")]

    def _wrapped(self, parts: Sequence[str], style: str, gap: str = " ") -> list[Text]:
        lines: list[str] = []
        for part in parts:
            if lines and cell_len(lines[-1] + gap + part) <= self._width:
                lines[-1] += gap + part
            else:
                lines.append(self._fit(part))
        return [Text(line, style=style) for line in lines]

    def _fit(self, text: str) -> str:
        return text if cell_len(text) <= self._width else set_cell_size(text, self._width)

    def _axis(self) -> Text:
        view = self._view
        cells = [" "] * (self._bars + 4)
        for tick in ticks(view.first_ms, view.last_ms, max(self._bars // TICK_CELLS, 1)):
            at, label = self._at(tick), f"{tick:g}"
            if at + len(label) <= len(cells):
                cells[at : at + len(label)] = label
        head = " " * self._label + "ms".rjust(MS_CELLS) + "   "
        return Text((head + "".join(cells)).rstrip(), style="dim")

    def _row(self, row: Row) -> Text:
        style = "red" if row.mark is Mark.FAILED else _STYLES[row.role]
        label = set_cell_size(" " + "  " * row.depth + " " + row.label, self._label - 1) + " "
        line = Text(label, style="bold" if row.mark is Mark.WON else "")
        line.append(f"{row.end_ms - row.start_ms:.1f}".rjust(MS_CELLS))
        line.append(f" {self._sign(row.mark)} ", style=style)
        line.append(self._bar(row), style=style)
        if self._note:
            line.append("  " + set_cell_size(self._view.note(row), self._note - 2), style=style)
        line.rstrip()
        return line

    def _sign(self, mark: Mark) -> str:
        glyphs = self._glyphs
        signs = {Mark.WON: glyphs.won, Mark.FAILED: glyphs.failed, Mark.LATE: glyphs.late}
        return signs.get(mark, " ")

    def _bar(self, row: Row) -> str:
        glyphs = self._glyphs
        cells = [" "] * self._bars
        cells[self._at(self._view.reply_ms)] = glyphs.reply
        first, last = self._at(row.start_ms), self._at(row.end_ms)
        glyph = glyphs.inner if row.role is Role.INNER else glyphs.bar
        if row.mark is Mark.LATE:
            glyph = glyphs.late
        cells[first : last + 1] = glyph * (last + 1 - first)
        if row.mark is Mark.FAILED:
            cells[last] = glyphs.failed
        elif row.end_ms > self._view.last_ms:
            cells[last] = glyphs.cut
        elif row.end_ms < self._view.first_ms:
            cells[first] = glyphs.before
        return "".join(cells)

    def _at(self, ms: float) -> int:
        """The cell of a moment; the nearest one for what lies beyond the axis."""
        place = round((ms - self._view.first_ms) * self._scale)
        return min(max(place, 0), self._bars - 1)

    def _key(self) -> list[str]:
        glyphs = self._glyphs
        return [
            f"{glyphs.reply} the reply",
            f"{glyphs.won} its answer was used",
            f"{glyphs.late} late or given up",
            f"{glyphs.failed} failed",
        ]
