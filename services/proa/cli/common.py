"""What every verb uses: exit codes, --json, the kinds of arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OK, FAILED, USAGE = 0, 1, 2

Verbs = Any  # argparse's own type for sub-commands is private
Run = Callable[[argparse.Namespace], int]


def add_verb(
    verbs: Verbs, name: str, run: Run, summary: str, **options: Any
) -> argparse.ArgumentParser:
    """A verb, with --json. `run` gets the parsed arguments and returns the exit code."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=summary, **options
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)
    return parser


def emit(tree: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    sys.stdout.write(json.dumps(tree, default=str) + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """A line for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """--run-dir, where `proa up` says what runs."""
    parser.add_argument(
        "--run-dir", type=Path, default=Path(".proa"), metavar="DIR",
        help="where `proa up` keeps its packages and run.json (default: %(default)s)",
    )  # fmt: skip


def number(least: float, most: float) -> Callable[[str], float]:
    """An argument type: a number within limits, that the error names."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {least:g} and {most:g}")
        return value

    return parse


def integer(least: int, most: int) -> Callable[[str], int]:
    """An argument type: an integer within limits, that the error names."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return parse
