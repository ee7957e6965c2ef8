"""The report as one HTML file: no scripts, nothing loaded from anywhere, light and dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from proa_chaos.experiment import PHASES
from proa_chaos.journal import journal
from proa_chaos.measures import sources, statuses
from proa_chaos.picture import Picture
from proa_chaos.result import Result

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --muted: #5b6676;
  --line: #dfe3e8; --tint: #f4f6f8; --fault: #f6e4bd; --bar: #c98a00; --worker: #8793a1;
  --reconstructed: #d55e00; --redundant: #009e73; --bad: #c40233; --good: #007a3d }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e8ecf1; --muted: #9aa6b5;
  --line: #2b333e; --tint: #191f27; --fault: #383019; --bar: #e9b44c; --worker: #77838f;
  --reconstructed: #ff8a3d; --redundant: #2bc096; --bad: #ff5c7a; --good: #3ecf7f } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 66rem;
  padding: 2.5rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem } h2 { font-size: 1.15rem;
  margin: 2.4rem 0 .5rem } p { max-width: 46rem; margin: .4rem 0 } .muted { color: var(--muted) }
.verdict { font-size: 1.25rem; font-weight: 600 } .Pass, .met { color: var(--good) }
.Fail, .Stopped, .missed { color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; margin-top: .8rem;
  font-variant-numeric: tabular-nums } th, td { padding: .35rem .8rem; text-align: right;
  border-bottom: 1px solid var(--line) } th { color: var(--muted); font-weight: 500 }
th:first-child, td:first-child { text-align: left; padding-left: .2rem }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--muted); font-size: 12px }
svg .tick { text-anchor: end } svg .time { text-anchor: middle } svg .on { fill: var(--ink) }
.phase { fill: none; stroke: var(--line) } .fault { fill: var(--fault); opacity: .3 }
.bar { fill: var(--bar); opacity: .35 } .grid { stroke: var(--line); stroke-width: .6 }
circle.worker { fill: var(--worker); opacity: .6 }
circle.reconstructed { fill: var(--reconstructed) } circle.redundant { fill: var(--redundant) }
circle.failed, circle.wrong { fill: var(--bad) }
.key span { margin-right: 1.4rem } .key i { display: inline-block; width: .7em; height: .7em;
  border-radius: 50%; margin-right: .4em }
"""


def write_report(result: Result, out: Path) -> tuple[Path, Path]:
    """Write journal.json and report.html into `out`; where they are."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "journal.json", out / "report.html"
    paths[0].write_text(json.dumps(journal(result), indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(page(result), encoding="utf-8")
    return paths


def page(result: Result) -> str:
    """The whole document."""
    experiment = result.experiment
    verdict = result.verdict.value
    key = "".join(
        f'<span><i style="background:var(--{c})"></i>{n}</span>' for c, n in result.seen.legend
    )
    facts = f"{result.subject}, {result.backend}, seed {result.seed}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(experiment.name)}: {verdict}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(experiment.title)}</h1>
<p class="verdict {verdict}">{verdict}{_step(result)}</p>
<p>{escape(experiment.description)}</p>
<p class="muted">{escape(facts)}; {result.duration_s:.0f} s; {_recovery(result)}</p>
<h2>Every {result.seen.word}</h2>
{Picture(result).svg()}
<p class="muted key">{key}</p>
<h2>Before, during, after</h2>
{_table(("phase", *result.seen.columns, "answered by", "failed with"), _phase_rows(result))}
<h2>The hypothesis</h2>
{_table(("probe", "found", "verdict"), _finding_rows(result))}
<h2>The faults</h2>
{_table(("fault", "from", "to", "note"), _fault_rows(result))}
{_notes(result)}</body>
</html>
"""


def _step(result: Result) -> str:
    return f": {escape(result.fail_step)}" if result.fail_step else ""


def _recovery(result: Result) -> str:
    if result.seen.recovery_s is None:
        return "not seen to recover"
    return f"all ready {result.seen.recovery_s:.1f} s after the faults"


def _phase_rows(result: Result) -> list[list[str]]:
    rows = []
    for phase in PHASES:
        samples = result.seen.of(phase)
        if samples:
            values = [result.seen.measure(name, phase) for name in result.seen.columns]
            shown = ["" if value is None else f"{value:.4g}" for value in values]
            counts = (sources(samples), statuses(samples))
            rest = [", ".join(f"{n} {name}" for name, n in c.items() if name) for c in counts]
            rows.append([phase, *shown, *map(escape, rest)])
    return rows


def _finding_rows(result: Result) -> list[list[str]]:
    judged = {finding.probe: finding for finding in result.findings}
    rows = []
    for probe in result.experiment.hypothesis:
        finding = judged.get(probe)
        word = "not judged" if finding is None else "met" if finding.met else "missed"
        found = escape(finding.text) if finding else ""
        rows.append([escape(probe.name), found, f'<span class="{word}">{word}</span>'])
    return rows


def _fault_rows(result: Result) -> list[list[str]]:
    rows = []
    for done in result.done:
        end = "" if done.end_s is None else f"{done.end_s:.2f} s"
        note = escape(done.error or done.end_error)
        rows.append([escape(done.hit.text), f"{done.start_s:.2f} s", end, note])
    return rows


def _notes(result: Result) -> str:
    lines = "".join(f"<p>{escape(line)}</p>\n" for line in result.notes)
    return f"<h2>Found afterwards</h2>\n{lines}" if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return '<p class="muted">none</p>'
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        "</table></div>"
    )
