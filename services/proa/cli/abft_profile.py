"""proa abft profile."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa.cli.common import OK, Verbs, add_verb, emit, integer, say
from proa.errors import InvalidRequest, SpecError

if TYPE_CHECKING:
    from proa.integrity.profile.measure import Options, Profile

_BATCH, _THREADS, _REPEATS = integer(1, 65_536), integer(1, 1024), integer(3, 1000)


def add_profile(verbs: Verbs) -> None:
    """`profile` among the verbs of `proa abft`."""
    parser = add_verb(verbs, "profile", run, "time every check of a model and write a plan")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a CodedModel file, or a .pt2")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to write the plan (plan.json)"
    )
    parser.add_argument(
        "--files", type=Path, metavar="DIR",
        help="where the spec's relative paths begin (default: the folder of MODEL)",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=_list(_BATCH), metavar="N,N",
        help="batch sizes (default: the least, and the spec's maxBatch or 8)",
    )  # fmt: skip
    parser.add_argument(
        "--schemes", type=_list(str), metavar="S,S", help="schemes to time (default: all there are)"
    )
    parser.add_argument(
        "--allow", type=_list(str), default=(), metavar="S,S",
        help="schemes that the plan may take although they cover less than row: dup",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=_THREADS, default=1, metavar="N",
        help="CPU threads; workers have PROA_WORKER_THREADS (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_REPEATS, default=15, metavar="N",
        help="interleaved repetitions of each measurement (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the roofline")


def _list(parse: Any) -> Any:
    """An argument type: one or more values between commas."""

    def values(text: str) -> tuple[Any, ...]:
        found = tuple(parse(part.strip()) for part in text.split(",") if part.strip())
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} names nothing")
        return found

    return values


def run(args: argparse.Namespace) -> int:
    """Measure, then write and show what was asked for."""
    from proa.integrity.profile.measure import profile
    from proa.integrity.profile.table import lines
    from proa.worker import programs

    _check_outputs(args)
    path, sha256, batches = _program(args)
    program, digest = programs.load_exported(path, sha256)
    found = profile(program, digest, _options(args, batches))
    _write(found, args)
    if args.json:
        emit(found.to_dict())
        return OK
    for line in lines(found):
        say(line)
    if args.out:
        say(f"plan written to {args.out}")
    return OK


def _program(args: argparse.Namespace) -> tuple[Path, str | None, tuple[int, ...] | None]:
    """The program's file, the hash it must have, and the batch sizes where the spec says some."""
    if args.model.suffix == ".pt2":
        return args.model, None, args.batches
    from proa.spec import load

    spec = load(args.model, args.files)
    if spec.model.program is None:
        raise SpecError(f"{args.model}: spec.model.program: is missing; nothing else is profiled")
    batches = args.batches or tuple(sorted({1, spec.model.max_batch}))
    return spec.model.program.path, spec.model.program.sha256, batches


def _options(args: argparse.Namespace, batches: tuple[int, ...] | None) -> Options:
    from proa.integrity.profile.measure import Options
    from proa.integrity.profile.timing import Effort

    return Options(
        batches=batches,
        schemes=args.schemes,
        also=args.allow,
        threads=args.threads,
        device=args.device,
        effort=Effort(repeats=args.repeats),
    )


def _check_outputs(args: argparse.Namespace) -> None:
    """Before minutes of measuring: what would be lost after them."""
    if args.picture:
        from proa.integrity.profile.picture import check_installed

        check_installed()
    for path in filter(None, (args.out, args.picture)):
        if not path.parent.is_dir():
            raise InvalidRequest(f"{path}: cannot be written: no folder {path.parent}")


def _write(found: Profile, args: argparse.Namespace) -> None:
    if args.picture:
        from proa.integrity.profile.picture import roofline_svg

        _put(args.picture, roofline_svg(found))
    if args.out:
        _put(args.out, (json.dumps(found.to_dict(), indent=1) + "\n").encode())


def _put(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise InvalidRequest(f"{path}: cannot be written: {exc.strerror}") from exc
