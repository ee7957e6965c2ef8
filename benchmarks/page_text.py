"""Pieces of the pages of results: tables and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def share(value: float | None) -> str:
    """A share as signed per cent."""
    return "" if value is None else percent(100 * value)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def verdict(met: bool) -> str:
    return "met" if met else "missed"
