"""campaign.json and the markdown page of a campaign."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proa.integrity.campaign.findings import Finding, Must, brief, musts, objects
from proa.integrity.campaign.tables import Table, tables

JSON_FILE = "campaign.json"
CRITICAL_SHOWN = 50


@dataclass(frozen=True)
class Report:
    """`about`: what was run, on what, in words and numbers."""

    about: Mapping[str, Any]
    findings: Sequence[Finding]

    @property
    def musts(self) -> list[Must]:
        return musts(self.findings)

    @property
    def tables(self) -> list[Table]:
        return tables(self.findings)

    @property
    def critical(self) -> list[Mapping[str, Any]]:
        """Faults that no check found and that changed the model's answer."""
        return [one for finding in self.findings for one in finding.critical]

    def to_dict(self) -> dict[str, Any]:
        """The tree of campaign.json."""
        return {
            "about": dict(self.about),
            "musts": [one.to_dict() for one in self.musts],
            "campaign": objects(self.findings),
        }

    def write_json(self, path: Path) -> None:
        """The whole tree."""
        _write(path, json_lines(self.to_dict()))

    def write_brief(self, path: Path) -> None:
        """The same with the objects of `findings.brief`."""
        _write(path, json_lines({**self.to_dict(), "campaign": brief(self.findings)}))

    def write_markdown(self, path: Path) -> None:
        _write(path, markdown(self))


def json_lines(tree: Mapping[str, Any], long: Sequence[str] = ("campaign",)) -> str:
    """JSON with one object on each line in the lists called `long`, which come last."""
    text = json.dumps({key: tree[key] for key in tree if key not in long}, indent=1)[:-2]
    for key in long:
        body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in tree[key])
        text += f',\n "{key}": [\n{body}\n]'
    return text + "}\n"


def markdown(report: Report) -> str:
    """The page: what was run, what must hold, the tables, what was critical."""
    lines = ["# Fault campaign", ""]
    lines += [f"- {name}: {value}" for name, value in report.about.items()]
    musts = [(one.name, one.measured, verdict_of(one)) for one in report.musts]
    lines += ["", *drawn(("must hold", "measured", ""), musts)]
    for table in report.tables:
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += drawn(table.columns, table.rows)
    if any(finding.layer for finding in report.findings):
        lines += ["", "## Undetected and critical", ""]
        lines += [f"- {describe(one)}" for one in report.critical[:CRITICAL_SHOWN]] or ["none"]
        more = len(report.critical) - CRITICAL_SHOWN
        lines += [f"- and {more} more: see {JSON_FILE}"] if more > 0 else []
    return "\n".join(lines) + "\n"


def verdict_of(must: Must) -> str:
    if must.reason:
        return f"missed: {must.reason}"
    return {True: "met", False: "NOT MET", None: "too little to tell"}[must.met]


def describe(one: Mapping[str, Any]) -> str:
    """One line about a critical fault."""
    bits = f" bits {one['bits']}" if one["bits"] else ""
    return (
        f"{one['layer']}: {one['fault']} in {one['site']} ({one['moment']}), row {one['row']},"
        f" column {one['column']}{bits}; input {one['input']}: answer {one['answer']} became"
        f" {one['became']}, output off by {one['difference']:.3g}"
    )


def drawn(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
