"""proa train model, proa train parity, proa eval."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, say

if TYPE_CHECKING:
    from proa.spec import ProgramRef
    from proa.train.quality import Quality

_ARCHS = ("mlp", "cnn")
_SOURCE = "`digits` (bundled with scikit-learn) or an .npz file"


def register(verbs: Verbs) -> None:
    group = verbs.add_parser("train", help="train a model, or a parity model for one")
    kinds = group.add_subparsers(title="what", metavar="WHAT", required=True)
    _register_model(kinds)
    _register_parity(kinds)
    parser = add_verb(
        verbs, "eval", _eval, "accuracy with and without losses; fails below spec.agreementMin"
    )
    parser.add_argument("spec", type=Path, metavar="SPEC", help="the CodedModel file")
    _add_data(parser, "labels, if there, give accuracies")
    parser.add_argument("--k", type=integer(1, 16), help="instead of the spec's")
    _add_seed(parser)


def _register_model(kinds: Verbs) -> None:
    parser = add_verb(kinds, "model", _train_model, "a classifier to serve; digits with parity")
    _add_data(parser, "with arrays images and labels")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="for its files")
    parser.add_argument("--name", default="model", help="of an own model (default: %(default)s)")
    parser.add_argument(
        "--additivity", type=float, default=0.0, metavar="WEIGHT",
        help="draws an own model towards one that codes well (default: %(default)s)",
    )  # fmt: skip
    _add_training(parser)


def _register_parity(kinds: Verbs) -> None:
    parser = add_verb(
        kinds, "parity", _train_parity, "a parity model, distilled on unlabelled queries"
    )
    parser.add_argument("spec", type=Path, metavar="SPEC", help="the CodedModel file")
    _add_data(parser, "with an array for each input")
    parser.add_argument("--k", type=integer(2, 16), help="instead of the spec's")
    parser.add_argument(
        "--row", type=integer(0, 2), default=0, help="parity row (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for its files (default: beside SPEC)"
    )
    _add_training(parser)


def _add_data(parser: argparse.ArgumentParser, note: str) -> None:
    parser.add_argument(
        "--data", default="digits", metavar="FILE", help=f"{_SOURCE}; {note} (default: digits)"
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", choices=_ARCHS, default="mlp", help="(default: %(default)s)")
    parser.add_argument(
        "--epochs", type=integer(1, 1_000_000), default=60, help="at most (default: %(default)s)"
    )
    _add_seed(parser)


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=integer(0, 2**31 - 1), default=0, help="(default: %(default)s)"
    )


def _train_model(args: argparse.Namespace) -> int:
    from proa.train.own import train_own_model

    spec = train_own_model(
        args.data,
        args.out,
        name=args.name,
        arch=args.arch,
        epochs=args.epochs,
        additivity=args.additivity,
        seed=args.seed,
        progress=_shows_progress(args),
    )
    if args.json:
        emit({"spec": spec})
    else:
        say(f"wrote {spec}")
        say(f"next: proa up {spec}")
    return OK


def _train_parity(args: argparse.Namespace) -> int:
    from proa.spec import load
    from proa.train.own import train_parity_program

    found = train_parity_program(
        load(args.spec),
        _load_program,
        args.data,
        k=args.k,
        row=args.row,
        out_dir=args.out,
        arch=args.arch,
        epochs=args.epochs,
        seed=args.seed,
        progress=_shows_progress(args),
    )
    if args.json:
        emit(
            {
                "program": found.path,
                "sha256": found.sha256,
                "k": found.k,
                "row": found.row,
                "epochs": found.epochs,
                "quality": found.quality.as_json(),
            }
        )
        return OK
    say(f"wrote {found.path} after {found.epochs} epochs")
    _show(found.quality)
    say("for spec.redundancy:")
    say(found.spec_lines)
    return OK


def _eval(args: argparse.Namespace) -> int:
    from proa.spec import load
    from proa.train.own import evaluate_spec

    spec = load(args.spec)
    quality = evaluate_spec(spec, _load_program, args.data, k=args.k, seed=args.seed)
    least = spec.redundancy.agreement_min
    good = quality.agreement[0] >= least
    if args.json:
        emit({"ok": good, "agreement_min": least, "quality": quality.as_json()})
    else:
        _show(quality)
        verdict = "at least" if good else "BELOW"
        say(f"agreement is {verdict} agreementMin = {least:g}")
    return OK if good else FAILED


def _load_program(ref: ProgramRef) -> Any:
    from proa.worker.programs import load

    return load(ref.path, ref.sha256)


def _shows_progress(args: argparse.Namespace) -> bool:
    return not args.json and sys.stdout.isatty()


def _show(quality: Quality) -> None:
    """Shares in per cent; what takes labels is left out without them."""
    say(f"{quality.code} over {quality.queries} queries, {quality.groups} groups")
    labelled = quality.available == quality.available  # not NaN
    if labelled:
        say(f"  {'A_a, the deployed model':<34} {quality.available:7.2%}")
    for losses, agreement in enumerate(quality.agreement, 1):
        if labelled:
            name = f"A_d, reconstructed, {losses} lost"
            say(f"  {name:<34} {quality.degraded[losses - 1]:7.2%}")
        name = f"agreement, {losses} lost"
        say(f"  {name:<34} {agreement:7.2%}")
    if labelled:
        for loss, overall in quality.overall.items():
            name = f"A_o, {loss:.0%} of the answers lost"
            say(f"  {name:<34} {overall:7.2%}")
