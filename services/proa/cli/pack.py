"""proa pack."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proa.cli.common import OK, Verbs, add_verb, emit, say

MISSED_MAX = 20


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
    from proa.worker.manifest import PACKAGE_FILE, Package
    from proa.worker.package import pack

    spec = load(args.spec, args.files)
    out = pack(spec, args.out, faults=args.faults, device=args.device)
    coverage = None
    if spec.protection.checked:
        coverage = Package.read(out / spec.name / "1" / PACKAGE_FILE).coverage
    if args.json:
        found = {"model": spec.name, "repository": out.resolve(), "programs": list(spec.programs())}
        emit(found if coverage is None else {**found, "coverage": coverage})
    else:
        hosted = ", ".join(spec.programs()) or "the given repository"
        say(f"packed {spec.name} ({hosted}) into {out}")
        for line in coverage_lines(coverage) if coverage else ():
            say(line)
    return OK


def coverage_lines(coverage: Mapping[str, Any]) -> list[str]:
    """What is checked in the deployed program, and each product that is not, with the reason."""
    layers = coverage["layers"]
    missed = [layer for layer in layers if layer["scheme"] == "none"]
    checked = len(layers) - len(missed)
    share = f"{100 * coverage['share']:.1f} % of their FLOPs"
    lines = [f"{coverage['mode']}: {checked} of {len(layers)} matrix products checked, {share}"]
    lines += [f"  not {m['layer']} ({m['op']}): {m['reason']}" for m in missed[:MISSED_MAX]]
    if len(missed) > MISSED_MAX:
        lines.append(f"  and {len(missed) - MISSED_MAX} more: see package.json")
    return lines
