"""The store demo's report as one HTML file: no scripts, nothing loaded, light and dark."""

from __future__ import annotations

import json
from html import escape

from proa.demo.render_html import STYLE, picture
from proa.demo.store import charts
from proa.demo.store.plan import WORKERS
from proa.demo.store.records import Run, Story

COLUMNS = (
    "arm", "loss", "examples/s", "recovery s", "longest stall s", "steps replayed", "checkpoints s",
    "same bytes",
)  # fmt: skip
CAPTION = (
    "Above the loss of every step as it was done, below new examples per second. A shard is its"
    " Valkey and its agent, both killed with SIGKILL at the same step of the two lower arms."
    " Shaded: until everything was redundant again, or training was where it had been. Pale: steps"
    " done a second time."
)
TABLE = (
    "recovery: with parity from the kill to full redundancy, with a checkpoint until training is"
    " where it was at the kill. longest stall: without a new step. same bytes: all tables, their"
    " optimiser's state and the dense layers at the end, and the loss of every step, are those of"
    " the run without a failure, bit by bit."
)


def cells(run: Run) -> tuple[str, ...]:
    """The values of COLUMNS, for people."""
    return (
        run.label,
        f"{run.loss_first:.3f} to {run.loss_last:.3f}",
        f"{run.examples_per_s:,.0f}",
        "-" if run.recovery_s is None else f"{run.recovery_s:.1f}",
        f"{run.stall_s:.1f}",
        str(run.lost_steps),
        f"{run.checkpoint_s:.1f}" if run.checkpoint_s else "-",
        "yes" if run.same_bytes and run.same_losses else "no",
    )


def page(story: Story) -> str:
    """The whole document."""
    plan = story.plan
    intro = (
        f"A DLRM with {len(plan.rows)} tables ({sum(plan.rows):,} rows of 64 floats), two workers,"
        f" {plan.steps} synchronous steps of {WORKERS * plan.batch} examples."
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in COLUMNS)
    rows = "\n".join(
        f"<tr{_hero(run)}>{''.join(f'<td>{escape(c)}</td>' for c in cells(run))}</tr>"
        for run in story.runs
    )
    facts = json.dumps(dict(story.facts), indent=2, sort_keys=True, default=str)
    shown = picture(
        lambda theme: charts.draw(story, theme, "svg"), "Loss and throughput over time", CAPTION
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>proa demo store</title>
<style>{STYLE}</style>
</head>
<body>
<h1>A shard of the embedding tables dies in mid-training</h1>
<p class="muted">{escape(intro)}</p>
{_key(story)}
{shown}
<h2>The numbers</h2>
<p class="muted">{escape(TABLE)}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
<h2>The run</h2>
<pre>{escape(facts)}</pre>
</body>
</html>
"""


def _hero(run: Run) -> str:
    return ' class="hero"' if run.arm == "parity" else ""


def _key(story: Story) -> str:
    blocks = []
    parity, checkpoint = story.run("parity"), story.run("checkpoint")
    if parity is not None and parity.recovery_s is not None:
        same = "the same bytes" if parity.same_bytes and parity.same_losses else "other bytes"
        blocks.append(f"<div><b>{parity.recovery_s:.1f} s</b>to full redundancy, by parity</div>")
        blocks.append(f"<div><b>{same}</b>at the end as without a failure</div>")
    if checkpoint is not None and checkpoint.recovery_s is not None:
        blocks.append(
            f"<div><b>{checkpoint.recovery_s:.1f} s</b>to where training was, by checkpoint</div>"
        )
    return f'<div class="key">{"".join(blocks)}</div>'
