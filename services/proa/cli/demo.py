"""proa demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from proa.cli.common import Verbs, add_verb, integer


def register(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "demo",
        _run,
        "what redundancy does to latency and accuracy, or to training, when machines fail",
    )
    parser.add_argument(
        "what", nargs="?", choices=("serving", "store"), default="serving",
        help="requests to slow and dying workers, or training while a shard of the embedding tables"
        " dies (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one minute, coarser numbers")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR",
        help="for the report and what belongs to it (default: out/demo, of store out/demo-store)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, help="(default: %(default)s)"
    )


def _run(args: argparse.Namespace) -> int:
    if args.what == "store":
        from proa.demo.store.main import main

        out = args.out or Path("out/demo-store")
    else:
        from proa.demo.serving import main

        out = args.out or Path("out/demo")
    return main(quick=args.quick, out=out, seed=args.seed, json=args.json)
