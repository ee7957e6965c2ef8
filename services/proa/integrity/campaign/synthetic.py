"""The campaign on synthetic matrices: dtypes x distributions x K, every site and fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from proa.errors import InvalidRequest
from proa.integrity.campaign.cells import Cases, Cell, run_cell
from proa.integrity.campaign.counts import Counts
from proa.integrity.campaign.findings import Finding
from proa.integrity.campaign.journal import Journal
from proa.integrity.campaign.machine import machine
from proa.integrity.campaign.operators import OPERATORS
from proa.integrity.campaign.plan import SIZES, Selection, Size, cells
from proa.integrity.campaign.report import Report

Tell = Callable[[int, int, str], None]  # parts done, parts in all, what is next
JOURNAL_FILE = "journal.jsonl"


def run_synthetic(
    out: Path,
    *,
    size: str = "quick",
    chosen: Selection | None = None,
    seed: int = 0,
    command: str = "",
    tell: Tell = lambda _done, _all, _what: None,
) -> Report:
    """Run the campaign, or what is left of it by the journal in `out`.

    `size`: a name of `plan.SIZES`. `command`: for the report. Everything random comes from `seed`,
    part by part, so a run that was broken off ends with the same numbers. Errors: InvalidRequest
    (names that are not there, the journal of a run with other arguments).
    """
    chosen = chosen or Selection()
    check(size, chosen)
    run: dict[str, Any] = {"campaign": "synthetic", "size": size, "seed": seed, **vars(chosen)}
    with Journal(out / JOURNAL_FILE, run) as journal, one_thread():
        findings = measure(SIZES[size], chosen, seed, journal, tell)
    about = {
        "command": command, "matrices": "synthetic", "size": size, "seed": seed,
        "operators": ", ".join(chosen.operators), "dtypes": ", ".join(chosen.dtypes),
        "data": ", ".join(chosen.distributions), **machine(),
    }  # fmt: skip
    return Report(about, findings)


def measure(
    size: Size,
    chosen: Selection,
    seed: int,
    journal: Journal | None = None,
    tell: Tell = lambda _done, _all, _what: None,
) -> list[Finding]:
    """Every cell of `size`, except those that the journal has."""
    planned = cells(size, chosen)
    cases = Cases(seed)
    done: Mapping[str, Any] = journal.done if journal else {}
    findings = []
    for at, cell in enumerate(planned):
        tell(at, len(planned), f"{cell.dtype} {cell.distribution} {cell.site} {cell.fault}")
        if cell.name in done:
            counts = Counts.of(done[cell.name])
        else:
            counts = run_cell(cell, cases, seed)
            if journal:
                journal.add(cell.name, counts.to_dict())
        findings.append(_finding(cell, counts))
    tell(len(planned), len(planned), "")
    return findings


def _finding(cell: Cell, counts: Counts) -> Finding:
    operator = OPERATORS[cell.operator]
    return Finding(
        op=operator.op,
        scheme=operator.scheme,
        dtype=cell.dtype,
        distribution=cell.distribution,
        site=cell.site,
        fault=cell.fault,
        moment=cell.moment,
        inner=cell.inner,
        counts=counts,
    )


def check(size: str, chosen: Selection) -> None:
    """Raise InvalidRequest for a name that is not there."""
    everything = Selection()
    kinds = (
        ("size", (size,), tuple(SIZES)),
        ("operator", chosen.operators, everything.operators),
        ("dtype", chosen.dtypes, everything.dtypes),
        ("distribution", chosen.distributions, everything.distributions),
    )
    for kind, names, known in kinds:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidRequest(f"unknown {kind} {unknown[0]!r}; there are {', '.join(known)}")
        if not names:
            raise InvalidRequest(f"no {kind} chosen; there are {', '.join(known)}")


@contextmanager
def one_thread() -> Iterator[None]:
    """The matrices are small: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
