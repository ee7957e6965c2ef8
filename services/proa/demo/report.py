"""The demo's report: report.json, report.html, pictures for the README, a terminal table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proa.demo import render_charts, render_html
from proa.demo.records import (
    FaultWindow,
    Phase,
    Report,
    ReportConfig,
    RequestRecord,
    Run,
    build_report,
)
from proa.demo.render_table import print_table

__all__ = [
    "FaultWindow",
    "Phase",
    "Report",
    "ReportConfig",
    "RequestRecord",
    "Run",
    "build_report",
    "print_table",
    "to_json",
    "write_report",
]


def write_report(report: Report, out_dir: Path) -> list[Path]:
    """Write report.json, report.html, report.svg, report.png and report-dark.svg to `out_dir`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes] = {
        "report.json": (json.dumps(to_json(report), indent=2, allow_nan=False) + "\n").encode(),
        "report.html": render_html.page(report).encode(),
        "report.svg": render_charts.summary(report, "light", "svg"),
        "report.png": render_charts.summary(report, "light", "png"),
        "report-dark.svg": render_charts.summary(report, "dark", "svg"),
    }
    for name, content in contents.items():
        (out_dir / name).write_bytes(content)
    return [out_dir / name for name in contents]


def to_json(report: Report) -> dict[str, Any]:
    """What report.json holds: `runs`, `config` (with the facts of the run) and `faults`."""
    config = report.config
    return {
        "runs": [run.to_json() for run in report.runs],
        "config": {
            "policies": dict(config.policies),
            "phases": [vars(phase) for phase in config.phases],
            "deadline_s": config.deadline_s,
            **config.facts,
        },
        "faults": [vars(window) for window in report.windows],
    }
