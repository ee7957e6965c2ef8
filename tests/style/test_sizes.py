"""Small on purpose: files and functions stay short enough to be read at once."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from style.sources import ROOT, functions, parse, place, python_files

FILE_LINES_MAX = 400
FILE_LINES_MEDIAN_MAX = 150
FUNCTION_LINES_MAX = 60
FUNCTION_LINES_MEDIAN_MAX = 12


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lengths(path: Path) -> list[tuple[int, str]]:
    """(lines, place and name) of every function in the file."""
    return [
        (
            (node.end_lineno or node.lineno) - node.lineno + 1,
            f"{place(path, node.lineno)} {node.name}",
        )
        for node in functions(parse(path))
    ]


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in python_files() if (n := line_count(p)) > FILE_LINES_MAX
    }
    assert not long


def test_the_median_file_is_short() -> None:
    assert median(line_count(p) for p in python_files("services")) <= FILE_LINES_MEDIAN_MAX


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = [entry for path in python_files() for entry in function_lengths(path)]
    assert [entry for entry in lengths if entry[0] > FUNCTION_LINES_MAX] == []


def test_the_median_function_is_short() -> None:
    lengths = [n for path in python_files("services") for n, _ in function_lengths(path)]
    assert median(lengths) <= FUNCTION_LINES_MEDIAN_MAX
