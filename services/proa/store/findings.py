"""How people are told what a scrub found."""

from __future__ import annotations

from proa.api.v1.store_pb2 import ScrubFinding

NAMED_MAX = 8


def named(finding: ScrubFinding) -> str:
    """A line that names table, place and ids."""
    names = list(finding.ids or finding.rows)
    shown = ", ".join(map(str, names[:NAMED_MAX])) + (", ..." if len(names) > NAMED_MAX else "")
    what = "ids" if finding.ids else "parity rows"
    return (
        f"{finding.kind}: shard {finding.shard}, table {finding.table!r}, stripe {finding.stripe},"
        f" position {finding.position}: {what} {shown}"
    )
