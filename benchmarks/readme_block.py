"""Writes the demo's numbers from docs/results/demo.json into README.md; nobody types them.

.venv/bin/python benchmarks/readme_block.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
PHASES = {
    "slow": "one of six workers is 40 ms slow, always another one",
    "killed": "one worker was killed and stays down",
}


def block(report: dict[str, Any]) -> str:
    """The README's part about the demo, as Markdown."""
    config = report["config"]
    lines = [
        "![latency by percentile and a timeline of every request](docs/results/demo.svg)",
        "",
        (
            f"{config['workers']} workers, {config['service_ms']:g} ms a query,"
            f" {config['rate_hz']:g} requests a second, open loop; every policy gets the same"
            " arrivals and faults, `none` and `auto` one right after the other. Measured with"
            " `make results-demo` on a machine with 2 shared cores ([all"
            " numbers](docs/results/demo.json)). Milliseconds; gap is p99 - p50; a failed request"
            f" counts as {1000 * config['deadline_s']:g}."
        ),
    ]
    for phase, what in PHASES.items():
        lines += ["", f"**{phase}**: {what}", "", *_table(report, phase)]
    return "\n".join(lines)


def _table(report: dict[str, Any], phase: str) -> list[str]:
    lines = [
        "| policy | p50 | p99 | gap | p99.9 | failed | reconstructed | accuracy | extra work |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        if run["phase"] != phase:
            continue
        reconstructed = run["answers"].get("reconstructed", 0)
        lines.append(
            f"| {run['policy']} | {run['p50_ms']:.1f} | {run['p99_ms']:.1f} | {run['gap_ms']:.1f}"
            f" | {run['p999_ms']:.1f} (n={run['p999_n']}) | {run['failed']} | {reconstructed}"
            f" | {100 * run['accuracy']:.1f} % | {run['extra_work']:.0f} % |"
        )
    return lines


def with_block(readme: str, found: str) -> str:
    """`readme` with what is between the two marks replaced."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{found}\n{END}{tail}"


def main() -> None:
    """Rewrite README.md."""
    report = json.loads((ROOT / "docs/results/demo.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    readme.write_text(with_block(readme.read_text(encoding="utf-8"), block(report)), "utf-8")


if __name__ == "__main__":
    main()
