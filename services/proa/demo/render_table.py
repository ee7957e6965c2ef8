"""The report as a table in the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proa.demo.records import Report, Run

COLUMNS = ("p50", "p99", "gap", "p99.9 (n)", "failed", "answers by source", "accuracy", "extra")


def print_table(report: Report, console: Console) -> None:
    """One table per phase: latencies in ms, accuracy and extra work in percent."""
    for phase in report.config.phases:
        console.print(_table(report, phase.name, phase.end_s - phase.start_s))
    console.print(_footnote(report), soft_wrap=True)


def _table(report: Report, phase: str, duration_s: float) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text.assemble((phase, "bold"), f"  {duration_s:g} s"),
        title_justify="left",
        title_style="",
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for name in COLUMNS:
        answers = name == "answers by source"
        table.add_column(name, justify="left" if answers else "right", no_wrap=not answers)
    for policy in report.config.policies:
        style = "bold" if policy == report.config.hero else ""
        table.add_row(policy, *cells(report.run(policy, phase)), style=style)
    return table


def cells(run: Run) -> tuple[str, ...]:
    """The values of COLUMNS, for people."""
    return (
        _ms(run.p50_ms),
        _ms(run.p99_ms),
        _ms(run.gap_ms),
        f"{_ms(run.p999_ms)} ({run.p999_n})",
        str(run.failed),
        "  ".join(f"{source}\u00a0{count}" for source, count in run.answers.items()) or "-",
        "-" if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
        f"{run.extra_work:.1f} %",
    )


def _footnote(report: Report) -> str:
    wrong = sum(run.wrong for run in report.runs)
    return (
        "Latencies in ms from the intended send time; gap is p99 - p50. A failed request counts as"
        f" {1e3 * report.config.deadline_s:g} ms. Wrong answers not marked reconstructed: {wrong}."
    )


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
