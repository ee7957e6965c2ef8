"""The latency of every request over time, as SVG that takes its colours from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from proa_chaos.measures import Sample
from proa_chaos.result import Result

WIDTH, PLOT_HEIGHT, ROW_HEIGHT = 1000, 260, 20
LEFT, RIGHT, TOP = 54, 24, 26
TICKS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)
DOTS_MAX = 6000
ROWS_MAX = 24


class Picture:
    """One run: a dot for each request, a bar for each fault, the three phases."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._samples = result.seen.samples
        times = [end_s for _, end_s in result.phases.values()] + [1.0]
        self._end_s = max(times)
        shown = [self._latency_ms(s) for s in self._samples] or [1.0]
        self._low = max(min(shown) * 0.8, 0.1)
        self._high = max(max(shown) * 1.2, self._low * 10)

    def svg(self) -> str:
        """The whole picture."""
        rows = list(dict.fromkeys(done.hit.text for done in self._result.done))[:ROWS_MAX]
        height = TOP + PLOT_HEIGHT + 24 + ROW_HEIGHT * len(rows) + 8
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="latency over time">',
            *self._phases(),
            *self._faults(rows),
            *self._axes(),
            *(self._dot(sample) for sample in _thinned(self._samples)),
            "</svg>",
        ]
        return "\n".join(parts)

    def _phases(self) -> list[str]:
        found = []
        for name, (start_s, end_s) in self._result.phases.items():
            x, width = self._x(start_s), self._x(end_s) - self._x(start_s)
            found.append(
                f'<rect class="phase" x="{x:.1f}" y="{TOP}" width="{width:.1f}"'
                f' height="{PLOT_HEIGHT}"/><text x="{x + 4:.1f}" y="{TOP - 8}">{name}</text>'
            )
        return found

    def _faults(self, rows: Sequence[str]) -> list[str]:
        """Behind the dots: when a fault acted; below: a row for each fault at each target."""
        found = []
        labelled = set()
        for done in self._result.done:
            x = self._x(done.start_s)
            end_s = self._end_s if done.end_s is None else done.end_s
            width = max(2.0, self._x(end_s) - x)
            found.append(
                f'<rect class="fault" x="{x:.1f}" y="{TOP}" width="{width:.1f}"'
                f' height="{PLOT_HEIGHT}"/>'
            )
            text = done.hit.text
            if text not in rows:
                continue
            y = TOP + PLOT_HEIGHT + 24 + ROW_HEIGHT * rows.index(text)
            found.append(
                f'<rect class="bar" x="{x:.1f}" y="{y}" width="{width:.1f}"'
                f' height="{ROW_HEIGHT - 5}"/>'
            )
            if text not in labelled:
                labelled.add(text)
                found.append(f'<text class="on" x="{x + 4:.1f}" y="{y + 11}">{escape(text)}</text>')
        return found

    def _axes(self) -> list[str]:
        found = []
        for tick in TICKS_MS:
            if self._low <= tick <= self._high:
                y, end = self._y(tick), WIDTH - RIGHT
                found += [
                    f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>',
                    f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}">{tick}</text>',
                ]
        step = max(1, round(self._end_s / 12))
        for second in range(0, int(self._end_s) + 1, step):
            y = TOP + PLOT_HEIGHT + 15
            found.append(f'<text class="time" x="{self._x(second):.1f}" y="{y}">{second} s</text>')
        found.append(f'<text class="tick" x="{LEFT - 6}" y="{TOP - 8}">ms</text>')
        return found

    def _dot(self, sample: Sample) -> str:
        kind = "failed" if not sample.ok else "wrong" if sample.wrong else _kind(sample.source)
        x, y = self._x(sample.at_s), self._y(self._latency_ms(sample))
        return (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{2 if kind == "worker" else 3}"/>'
        )

    def _latency_ms(self, sample: Sample) -> float:
        """A failed request waited for its deadline."""
        return 1e3 * (sample.latency_s if sample.ok else self._result.seen.deadline_s)

    def _x(self, at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at_s, 0.0), self._end_s) / self._end_s

    def _y(self, ms: float) -> float:
        share = math.log(max(ms, self._low) / self._low) / math.log(self._high / self._low)
        return TOP + PLOT_HEIGHT * (1.0 - share)


def _kind(source: str) -> str:
    if source == "reconstructed":
        return "reconstructed"
    return "worker" if source in ("", "worker") else "redundant"


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    """All that is out of the ordinary, and of the rest as many as can be drawn."""
    plain = [s for s in samples if s.ok and not s.wrong and _kind(s.source) == "worker"]
    kept = plain[:: len(plain) // DOTS_MAX + 1]
    odd = [s for s in samples if not s.ok or s.wrong or _kind(s.source) != "worker"]
    return [*kept, *odd[:: len(odd) // DOTS_MAX + 1]]
