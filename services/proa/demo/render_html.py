"""The report as one HTML file: no scripts, nothing loaded from anywhere, light and dark."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from html import escape

from proa.demo import render_charts
from proa.demo.records import Report, Run
from proa.demo.render_table import COLUMNS, cells

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --muted: #5b6676;
  --line: #dfe3e8; --hero: #0072b2; --tint: #eef5fa; --bad: #c40233 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e8ecf1; --muted: #9aa6b5;
  --line: #2b333e; --hero: #56b4e9; --tint: #17222c; --bad: #ff5c7a } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 66rem;
  padding: 2.5rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem }
p { max-width: 46rem; margin: .4rem 0 }
.muted, figcaption, caption { color: var(--muted) }
.key { display: flex; flex-wrap: wrap; gap: .5rem 2.6rem; margin: 1.4rem 0 0 }
.key div { border-left: 3px solid var(--hero); padding-left: .8rem }
.key b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 0 } figure img { width: 100%; height: auto; display: block }
figcaption { font-size: .9rem; max-width: 46rem; margin-top: .4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin-top: 1.2rem;
  font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .3rem } caption b { color: var(--ink) }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-weight: 500 } th:first-child, td:first-child { text-align: left;
  padding-left: .4rem } .sources { text-align: left; white-space: normal; min-width: 13rem }
tr.hero td { background: var(--tint); font-weight: 600 } .bad { color: var(--bad) }
pre { background: var(--tint); padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem }
"""

TAILS = (
    "Latency by percentile, from the intended send time; from p90 to p99 to p99.9 each mark is ten"
    " times rarer, and the last step is the slowest request. A failed request counts with its"
    " deadline, {deadline_ms:g} ms. All policies had the same arrivals and the same faults."
)
TIMELINES = (
    "One dot per request, at its intended send time, coloured by who answered. Neighbouring slow"
    " episodes are shaded in turn; the slow worker changes with each."
)
TABLE = (
    "Latencies in ms. gap is p99 minus p50. p99.9 stands on n requests: below 1,000 it is simply"
    " the slowest one. wrong counts answers that are not marked reconstructed and yet differ from"
    " the offline model. extra is redundant computation in percent of the requests."
)


def page(report: Report) -> str:
    """The whole document."""
    config = report.config
    tails = TAILS.format(deadline_ms=1e3 * config.deadline_s)
    facts = json.dumps(dict(config.facts), indent=2, sort_keys=True, default=str)
    tables = "\n".join(
        _table(report, phase.name, phase.end_s - phase.start_s) for phase in config.phases
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>proa demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What redundancy did when workers were slow, and when one died</h1>
<p class="muted">{_intro(report)}</p>
{_key_numbers(report)}
<h2>The tail</h2>
{_figure(report, render_charts.tails, "Latency by percentile for each policy", tails)}
<h2>Every request</h2>
{_figure(report, render_charts.timelines, "Latency over time for each policy", TIMELINES)}
<h2>The numbers</h2>
<p class="muted">{TABLE}</p>
{tables}
<h2>The run</h2>
<pre>{escape(facts)}</pre>
</body>
</html>
"""


def _intro(report: Report) -> str:
    config = report.config
    phases = ", ".join(f"{p.name} {p.end_s - p.start_s:g} s" for p in config.phases)
    return escape(
        f"{len(config.policies)} policies, {len(report.records):,} requests; phases: {phases}."
        f" In short, “{config.policies[config.hero]}” against “{config.policies[config.baseline]}”:"
    )


def _key_numbers(report: Report) -> str:
    """The hero's gap against the baseline's, for each phase with faults."""
    config = report.config
    blocks = []
    for phase in config.phases:
        if phase.name in render_charts.TAIL_PHASES:
            hero, base = (report.run(p, phase.name) for p in (config.hero, config.baseline))
            blocks.append(
                f"<div><b>{hero.p99_ms:.0f} ms</b>p99 with {render_charts.TAIL_PHASES[phase.name]}"
                f'<br><span class="muted">{base.p99_ms:.0f} ms without redundancy;'
                f" {hero.failed} failed, without {base.failed}</span></div>"
            )
    return f'<div class="key">{"".join(blocks)}</div>'


def _figure(
    report: Report, draw: Callable[[Report, str, str], bytes], alt: str, caption: str
) -> str:
    return picture(lambda theme: draw(report, theme, "svg"), alt, caption)


def picture(draw: Callable[[str], bytes], alt: str, caption: str) -> str:
    """A figure for light and dark paper. draw: the SVG for a theme's name."""
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(draw(theme)).decode()
        for theme in ("light", "dark")
    )
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(report: Report, phase: str, duration_s: float) -> str:
    names = ("policy", *COLUMNS, "wrong")
    head = "".join(f'<th scope="col"{_sources(name)}>{escape(name)}</th>' for name in names)
    rows = "\n".join(_row(report, report.run(policy, phase)) for policy in report.config.policies)
    return (
        f'<div class="wide"><table><caption><b>{escape(phase)}</b> {duration_s:g} s</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(report: Report, run: Run) -> str:
    hero = ' class="hero"' if run.policy == report.config.hero else ""
    values = dict(zip(COLUMNS, cells(run), strict=True)) | {"wrong": str(run.wrong)}
    found = [f"<td>{escape(report.config.policies[run.policy])}</td>"]
    for name, value in values.items():
        bad = name in ("failed", "wrong") and value != "0"
        shown = ' class="bad"' if bad else _sources(name)
        found.append(f"<td{shown}>{escape(value)}</td>")
    return f"<tr{hero}>{''.join(found)}</tr>"


def _sources(column: str) -> str:
    return ' class="sources"' if column == "answers by source" else ""
