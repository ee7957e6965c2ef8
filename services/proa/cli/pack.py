"""proa pack."""

from __future__ import annotations

import argparse
from pathlib import Path

from proa.cli.common import OK, Verbs, add_verb, emit, say


def register(verbs: Verbs) -> None:
    parser = add_verb(verbs, "pack", _run, "turn a spec's programs into a Triton model repository")
    parser.add_argument("spec", type=Path, metavar="SPEC", help="the CodedModel file")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="the repository to write"
    )
    parser.add_argument(
        "--files", type=Path, metavar="DIR",
        help="where the spec's relative paths begin (default: the folder of SPEC)",
    )  # fmt: skip
    parser.add_argument(
        "--faults", action="store_true", help="add the fault injection model (for tests and demos)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu",
        help="where Triton places the model (default: %(default)s)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    from proa.spec import load
    from proa.worker.package import pack

    spec = load(args.spec, args.files)
    out = pack(spec, args.out, faults=args.faults, device=args.device)
    if args.json:
        emit({"model": spec.name, "repository": out.resolve(), "programs": list(spec.programs())})
    else:
        hosted = ", ".join(spec.programs()) or "the given repository"
        say(f"packed {spec.name} ({hosted}) into {out}")
    return OK
