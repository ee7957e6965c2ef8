"""The picture as one HTML file: no scripts, nothing loaded from anywhere, light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

from proa.traces.axis import ticks
from proa.traces.spans import Span
from proa.traces.view import Mark, Row, View

FILE = "trace.html"

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --muted: #5b6676;
  --line: #dfe3e8; --tint: #f4f6f8; --request: #0072b2; --worker: #8793a1; --coding: #d55e00;
  --redundant: #009e73; --inner: #bcc4cd; --bad: #c40233 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e8ecf1; --muted: #9aa6b5;
  --line: #2b333e; --tint: #191f27; --request: #56b4e9; --worker: #77838f; --coding: #ff8a3d;
  --redundant: #2bc096; --inner: #4a5563; --bad: #ff5c7a } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 76rem;
  padding: 2.5rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; line-height: 1.35; margin: 0 0 .4rem; max-width: 56rem;
  overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .4rem } .muted { color: var(--muted) }
p { margin: .3rem 0; overflow-wrap: anywhere } .wide { overflow-x: auto; margin-top: 1.4rem }
svg { width: 100%; min-width: 820px; height: auto; display: block }
svg text { fill: var(--ink); font-size: 12.5px; font-variant-numeric: tabular-nums }
svg .note, svg .tick { fill: var(--muted) } svg .tick { text-anchor: middle }
svg .ms { text-anchor: end } svg .title { font-weight: 600 } svg .won { font-weight: 600 }
svg .band { fill: var(--tint) } svg .grid { stroke: var(--line); stroke-width: .8 }
svg .reply { stroke: var(--request); stroke-width: 1.4; stroke-dasharray: 3 3 }
svg .replied { fill: var(--request); text-anchor: middle; font-weight: 600 }
rect.request { fill: var(--request) } rect.worker { fill: var(--worker) }
rect.coding { fill: var(--coding) } rect.redundant { fill: var(--redundant) }
rect.inner { fill: var(--inner) } rect.late { fill-opacity: .22; stroke-dasharray: 4 3;
  stroke-width: 1.3 }
rect.late.worker { stroke: var(--worker) } rect.late.redundant { stroke: var(--redundant) }
rect.failed { fill: var(--bad) } text.failed { fill: var(--bad) !important }
.event { stroke: var(--ink); stroke-width: 1.3 }
.key span { margin-right: 1.4rem; white-space: nowrap } .key i { display: inline-block;
  width: 1.1em; height: .6em; margin-right: .45em } .key .dash { box-sizing: border-box;
  border: 1.3px dashed var(--worker) }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums;
  width: 100%; min-width: 900px } th, td { padding: .3rem .7rem .3rem .2rem; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line) } th { color: var(--muted);
  font-weight: 500 } .n { text-align: right } .n, .w {
  white-space: nowrap } td { overflow-wrap: anywhere }
td.name { min-width: 20rem }
  td.pairs { min-width: 18rem } td b { font-weight: 500; color: var(--muted) }
"""
KEY = (
    ("request", "request"),
    ("worker", "worker"),
    ("redundant", "retry, replica, hedge"),
    ("coding", "parity, decoding"),
    ("inner", "inside a service"),
    ("bad", "failed"),
)
WIDTH, LABEL, NOTE, MS, TOP, ROW, BAR = 1160, 236, 190, 64, 30, 23, 12
LEFT, RIGHT = LABEL + MS, WIDTH - NOTE
TICKS = 8


def write_page(view: View, out: Path) -> Path:
    """Write trace.html into `out` (made if need be); where it is. Errors: OSError."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE
    path.write_text(page(view), encoding="utf-8")
    return path


def page(view: View) -> str:
    """The whole document."""
    key = "".join(f'<span><i style="background:var(--{c})"></i>{n}</span>' for c, n in KEY)
    key += '<span><i class="dash"></i>late or given up</span>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(view.verdict)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(view.verdict)}</h1>
<p class="muted">{escape(view.facts)}</p>
<div class="wide">
{_Drawing(view).svg()}
</div>
<p class="muted key">{key}</p>
<h2>Every span</h2>
<div class="wide"><table><thead><tr><th scope="col"></th><th scope="col">span</th>
<th scope="col">service</th><th scope="col" class="n">from, ms</th><th scope="col" class="n">for, ms
</th><th scope="col">attributes</th></tr>
</thead><tbody>
{_table(view)}
</tbody></table></div>
</body>
</html>
"""


class _Drawing:
    """The waterfall; its colours come from the page's CSS."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._scale = (RIGHT - LEFT) / max(view.last_ms - view.first_ms, 1e-6)
        self._height = TOP + ROW * (len(view.rows()) + len(view.sections)) + 8

    def svg(self) -> str:
        view = self._view
        head = (
            f'<svg viewBox="0 0 {WIDTH} {self._height}" role="img"'
            f' aria-label="{escape(view.verdict)}: a bar for each span, over time">'
        )
        bands, rows, y = [], [], TOP
        for index, section in enumerate(view.sections):
            height = ROW * (len(section.rows) + 1)
            if index % 2 == 0:
                bands.append(f'<rect class="band" y="{y}" width="{WIDTH}" height="{height}"/>')
            rows.append(f'<text class="title" x="6" y="{y + 16}">{escape(section.title)}</text>')
            for number, row in enumerate(section.rows, 1):
                rows.append(self._row(row, y + ROW * number))
            y += height
        return "\n".join([head, *bands, *self._axis(), *rows, "</svg>"])

    def _axis(self) -> list[str]:
        view, end = self._view, self._height - 4
        reply = self._x(view.reply_ms)
        found = []
        for tick in ticks(view.first_ms, view.last_ms, TICKS):
            x = self._x(tick)
            found.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{end}"/>')
            if abs(x - reply) > 44:  # the reply's own label stands there
                found.append(f'<text class="tick" x="{x:.1f}" y="{TOP - 8}">{tick:g}</text>')
        found += [
            f'<text class="ms note" x="{LEFT - 10}" y="{TOP - 8}">ms</text>',
            f'<line class="reply" x1="{reply:.1f}" x2="{reply:.1f}" y1="{TOP - 4}" y2="{end}"/>',
            f'<text class="replied" x="{reply:.1f}" y="{TOP - 8}">reply {view.reply_ms:.1f}</text>',
        ]
        return found

    def _row(self, row: Row, y: int) -> str:
        x, end = self._x(row.start_ms), self._x(row.end_ms)
        indent = 16 + 12 * min(row.depth, 6)
        mark, label = row.mark.value, _short(row.label, 34 - 2 * min(row.depth, 6))
        duration_ms = row.end_ms - row.start_ms
        return (
            f"<g><title>{escape(_tooltip(row))}</title>"
            f'<rect class="band" fill-opacity="0" y="{y}" width="{WIDTH}" height="{ROW}"/>'
            f'<text class="{mark}" x="{indent}" y="{y + 16}">{escape(label)}</text>'
            f'<text class="ms note" x="{LEFT - 10}" y="{y + 16}">{duration_ms:.1f}</text>'
            f'<rect class="{row.role.value} {mark}" x="{x:.1f}" y="{y + 6}" rx="2"'
            f' width="{max(end - x, 2.0):.1f}" height="{BAR}"/>{self._events(row, y)}'
            f'<text class="{_emphasis(row.mark)}" x="{RIGHT + 12}" y="{y + 16}">'
            f"{escape(_short(self._view.note(row), 30))}</text></g>"
        )

    def _events(self, row: Row, y: int) -> str:
        view, found = self._view, []
        for at_ns, name in row.span.events:
            at_ms = (at_ns - view.story.root.start_ns) / 1e6
            if row.start_ms <= at_ms <= min(row.end_ms, view.last_ms):
                x = self._x(at_ms)
                found.append(
                    f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 6}"'
                    f' y2="{y + 6 + BAR}"><title>{escape(name)} at {at_ms:.1f} ms</title></line>'
                )
        return "".join(found)

    def _x(self, ms: float) -> float:
        view = self._view
        return LEFT + (min(max(ms, view.first_ms), view.last_ms) - view.first_ms) * self._scale


def _emphasis(mark: Mark) -> str:
    return {Mark.WON: "won", Mark.FAILED: "failed"}.get(mark, "note")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tooltip(row: Row) -> str:
    end = f"{row.start_ms:.2f} to {row.end_ms:.2f} ms"
    return f"{row.span.name} ({row.span.service or 'unknown service'}): {end} {row.note}".rstrip()


def _table(view: View) -> str:
    return "\n".join(
        f'<tr><td class="w">{escape(section.title)}</td>'
        f'<td class="name">{escape(row.span.name)}</td>'
        f'<td class="w">{escape(row.span.service)}</td>'
        f'<td class="n">{row.start_ms:.2f}</td>'
        f'<td class="n">{row.end_ms - row.start_ms:.2f}</td>'
        f'<td class="pairs">{_pairs(row.span)}</td></tr>'
        for section in view.sections
        for row in section.rows
    )


def _pairs(span: Span) -> str:
    pairs = [f"<b>{escape(key)}</b> {escape(span.text(key))}" for key in sorted(span.attributes)]
    if span.error is not None:
        pairs.append(f"<b>error</b> {escape(span.error)}")
    return ", ".join(pairs)
