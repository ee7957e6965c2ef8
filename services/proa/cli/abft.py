"""proa abft: what is known of the checks of matrix products."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from proa.cli.abft_profile import add_profile
from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, say
from proa.errors import InvalidRequest

if TYPE_CHECKING:
    from proa.integrity.campaign.report import Report
    from proa.spec import ProgramRef

_WIDTH_OF_FILES = 160  # of tables that no terminal shows
_CRITICAL_SHOWN = 10


def register(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "abft", help="checked matrix products: break them on purpose, or plan them",
        description="Silent data corruption: what the checks of matrix products find, and cost.",
    )  # fmt: skip
    what = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_campaign(what)
    add_profile(what)


def _add_campaign(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "campaign", _campaign,
        "inject faults into checked products, and count what is found; a run that was broken off"
        " goes on; fails where something does not hold that must",
    )  # fmt: skip
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL",
        help="a .pt2 program or a CodedModel file, whose own layers and activations are used"
        " (default: synthetic matrices)",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz",
        help="of MODEL: arrays [n, ...] by input name (default: random numbers)",
    )  # fmt: skip
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME",
        help="of MODEL: break this layer; may be repeated (default: all that are checked)",
    )  # fmt: skip
    parser.add_argument(
        "--faults", type=integer(1, 10_000_000), metavar="N",
        help="into MODEL, about, spread over layers, sites and kinds (default: by --size)",
    )  # fmt: skip
    for flag, about in (
        ("--operator", "checked operator and scheme, as linear.row"),
        ("--dtype", "fp32, bf16 or fp16"),
        ("--distribution", "of the matrices, as n01"),
    ):
        parser.add_argument(
            flag, action="append", default=[], metavar="NAME",
            help=f"without MODEL: {about}; may be repeated (default: all)",
        )  # fmt: skip
    parser.add_argument(
        "--size", choices=("quick", "full"), default="quick",
        help="about two minutes, or a quarter of an hour, on one core (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=integer(0, 2**31 - 1), default=0,
        help="of every random choice (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("out/abft"), metavar="DIR",
        help="for campaign.json and the journal of the run (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument(
        "--brief", type=Path, metavar="FILE",
        help="write the counts of campaign.json there too, without parts, rates and bits",
    )  # fmt: skip


def _campaign(args: argparse.Namespace) -> int:
    from proa.integrity.campaign.findings import failed
    from proa.integrity.campaign.report import JSON_FILE

    report = _synthetic(args) if args.model is None else _model(args)
    path = args.out / JSON_FILE
    report.write_json(path)
    if args.markdown is not None:
        report.write_markdown(args.markdown)
    if args.brief is not None:
        report.write_brief(args.brief)
    if args.json:
        emit(report.to_dict())
    else:
        _show(report)
        say(f"wrote {path}")
    return FAILED if failed(report.musts) else OK


def _synthetic(args: argparse.Namespace) -> Report:
    from proa.integrity.campaign.plan import Selection
    from proa.integrity.campaign.synthetic import run_synthetic

    for flag in ("inputs", "layer", "faults"):
        if getattr(args, flag):
            raise InvalidRequest(f"--{flag} needs a MODEL")
    names = {"operators": args.operator, "dtypes": args.dtype, "distributions": args.distribution}
    chosen = Selection(**{kind: tuple(dict.fromkeys(some)) for kind, some in names.items() if some})
    with _progress(args) as tell:
        return run_synthetic(
            args.out, size=args.size, chosen=chosen, seed=args.seed, command=_command(), tell=tell
        )


def _model(args: argparse.Namespace) -> Report:
    from proa.integrity.campaign.model import Model, run_model
    from proa.train.data import read_npz
    from proa.worker.programs import load_exported

    for flag in ("operator", "dtype", "distribution"):
        if getattr(args, flag):
            raise InvalidRequest(f"--{flag} is for synthetic matrices, not for a MODEL")
    ref, names = _program(args.model)
    program, digest = load_exported(ref.path, ref.sha256)
    model = Model(
        name=args.model.name,
        program=program,
        sha256=digest,
        names=names,
        arrays=None if args.inputs is None else read_npz(args.inputs),
        source="" if args.inputs is None else args.inputs.name,
    )
    with _progress(args) as tell:
        return run_model(
            model, args.out, size=args.size, faults=args.faults, layers=args.layer,
            seed=args.seed, command=_command(), tell=tell,
        )  # fmt: skip


def _program(path: Path) -> tuple[ProgramRef, tuple[str, ...]]:
    """Of a .pt2, or the deployed one of a spec with the names of its inputs."""
    from proa.spec import ProgramRef, load

    if path.suffix == ".pt2":
        return ProgramRef(path), ()
    spec = load(path)
    if spec.model.program is None:
        raise InvalidRequest(f"{path}: spec.model has no program to run here")
    return spec.model.program, tuple(tensor.name for tensor in spec.model.inputs)


def _command() -> str:
    return shlex.join(["proa", *sys.argv[1:]])


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = not args.json and sys.stdout.isatty()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, disable=not shown, transient=True) as progress:
        task = progress.add_task("", what="")
        yield lambda done, parts, what: progress.update(
            task, completed=done, total=parts, what=what
        )


def _show(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from proa.integrity.campaign.report import describe, verdict_of

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    for name, value in report.about.items():
        say(f"{name}: {value}")
    for table in report.tables:
        drawn = Table(
            title=table.title,
            title_justify="left",
            caption=table.note,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for at, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if at == 0 else "right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for one in report.critical[:_CRITICAL_SHOWN]:
        say(f"undetected and critical: {describe(one)}")
    if len(report.critical) > _CRITICAL_SHOWN:
        say(f"and {len(report.critical) - _CRITICAL_SHOWN} more: see campaign.json")
    for must in report.musts:
        say(f"{verdict_of(must):<20} {must.name}: {must.measured}")
