"""proa chaos."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, number, say
from proa.errors import InvalidRequest

if TYPE_CHECKING:
    from proa_chaos.events import Event
    from proa_chaos.result import Result


def register(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "chaos", help="break things on purpose, and get a verdict",
        description="Experiments: a workload, faults, a hypothesis, a verdict.",
    )  # fmt: skip
    what = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    run = add_verb(what, "run", _run, "run one experiment; exit code 0 when its verdict is Pass")
    run.add_argument("file", type=Path, metavar="FILE", help="the experiment")
    run.add_argument(
        "--local", action="store_true", help="against `proa up` or `proa store up` on this machine"
    )
    run.add_argument(
        "--out", type=Path, metavar="DIR",
        help="for journal.json and report.html (default: out/chaos/NAME)",
    )  # fmt: skip
    run.add_argument("--model", metavar="MODEL", help="instead of the file's")
    run.add_argument(
        "--rate", type=number(0.1, 10_000.0), metavar="HZ", help="instead of the file's"
    )
    run.add_argument(
        "--inputs", type=Path, metavar="FILE.npz",
        help="queries, and perhaps answers and labels, instead of random ones",
    )  # fmt: skip
    run.add_argument(
        "--seed", type=integer(0, 2**31 - 1), default=0,
        help="of every random choice (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--force", action="store_true", help="break more than the redundancy is made for"
    )
    run.add_argument(
        "--parallel", action="store_true", help="although another experiment may be running"
    )
    run.add_argument(
        "--run-dir", type=Path, metavar="DIR",
        help="where what is broken keeps run.json (default: .proa, for a store .proa-store)",
    )  # fmt: skip
    _register_manifest(what)


def _register_manifest(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "manifest", _manifest, "print an experiment as a Job, for kubectl apply -f -"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the experiment")
    for flag, metavar, about in (
        ("--release", "NAME", "Helm release to break"),
        ("--image", "IMAGE", "the services image, as the release has it"),
    ):
        parser.add_argument(flag, metavar=metavar, required=True, help=about)
    parser.add_argument(
        "--namespace", metavar="NAME", default="default", help="of the release (%(default)s)"
    )
    for flag, about in (
        ("--fullname", "what the release's objects are called, where values say so"),
        ("--token-secret", "Secret whose key `token` is a token with `faults: true`"),
        ("--tls-secret", "Secret of the services' certificates"),
        ("--client-tls-secret", "Secret with the ca.crt of the frontends"),
        ("--users-secret", "Secret with the key `reader`, where a store's servers have users"),
    ):
        parser.add_argument(flag, metavar="NAME", help=about)
    parser.add_argument("--seed", type=integer(0, 2**31 - 1), default=0, help="of random choices")
    parser.add_argument(
        "--force", action="store_true", help="break more than the redundancy is made for"
    )


def _manifest(args: argparse.Namespace) -> int:
    import yaml

    from proa_chaos.file import load_experiment
    from proa_chaos.kubernetes.manifest import Place, manifest

    experiment = load_experiment(args.file)
    place = Place(
        release=args.release,
        namespace=args.namespace,
        image=args.image,
        fullname=args.fullname,
        token_secret=args.token_secret,
        tls_secret=args.tls_secret,
        client_tls_secret=args.client_tls_secret,
        users_secret=args.users_secret,
        seed=args.seed,
        force=args.force,
    )
    objects = manifest(experiment, args.file.read_text(encoding="utf-8"), place)
    if args.json:
        emit({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        say("---\n".join(yaml.safe_dump(one, sort_keys=False) for one in objects).rstrip())
    return OK


def _run(args: argparse.Namespace) -> int:
    if not args.local:
        raise InvalidRequest(
            "on this machine: add --local; in a cluster a Job runs it: proa chaos manifest FILE"
        )
    from proa_chaos.file import load_experiment
    from proa_chaos.local.command import run_local
    from proa_chaos.options import Options
    from proa_chaos.report import write_report

    experiment = load_experiment(args.file)
    options = Options(
        run_dir=args.run_dir,
        seed=args.seed,
        force=args.force,
        parallel=args.parallel,
        rate_hz=args.rate,
        inputs=args.inputs,
        model=args.model,
    )
    result = asyncio.run(run_local(experiment, options, tell=_teller(json=args.json)))
    out = args.out or Path("out/chaos") / experiment.name
    paths = write_report(result, out)
    if args.json:
        from proa_chaos.journal import journal

        emit(journal(result))
    else:
        _conclude(result, paths)
    return OK if result.verdict.value == "Pass" else FAILED


def _teller(*, json: bool) -> Callable[[Event], None]:
    """The timeline: one line for each event, on stderr where stdout is for programs."""
    out = sys.stderr if json else sys.stdout

    def tell(event: Event) -> None:
        out.write(f"{event.at_s:7.1f} s  {event.kind:<8}  {event.text}\n")
        out.flush()

    return tell


def _conclude(result: Result, paths: tuple[Path, Path]) -> None:
    say()
    say(f"{result.experiment.name}: {result.verdict.value}  {result.fail_step}".rstrip())
    say(f"probes met: {result.success_percentage:.0f} %")
    if not result.as_expected:
        say(f"this experiment expects {result.experiment.expected}")
    say(f"report: {paths[1]}   journal: {paths[0]}")
