"""proa demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from proa.cli.common import Verbs, add_verb, integer


def register(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "demo", _run, "what each redundancy policy does to latency, failures and accuracy"
    )
    parser.add_argument(
        "what", nargs="?", choices=("serving",), default="serving", help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one minute, coarser numbers")
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR",
        help="for report, spec and packages (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, help="(default: %(default)s)"
    )


def _run(args: argparse.Namespace) -> int:
    from proa.demo import serving

    code: int = serving.main(quick=args.quick, out=args.out, seed=args.seed, json=args.json)
    return code
