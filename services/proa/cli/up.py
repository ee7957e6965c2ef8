"""proa up."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proa.cli.common import OK, Verbs, add_run_dir, add_verb, emit, integer, number, say
from proa.local.topology import WORKERS_MAX, Options, Topology

COLLECTOR = "127.0.0.1:4318"  # where `proa trace` listens
_ADDRESS = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def register(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "up", _run, "serve specs on this machine: workers, encoder, decoder, frontend"
    )
    parser.add_argument("specs", type=Path, nargs="+", metavar="SPEC", help="CodedModel files")
    port = integer(0, 65_535)
    parser.add_argument(
        "--port", type=port, default=8001,
        help="of the frontend, gRPC; 0: any free one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--admin-port", type=port, default=9090,
        help="of the frontend, livez, readyz, metrics; 0: any (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=integer(1, WORKERS_MAX), metavar="N",
        help="for each model (default: k + r + 1, at least 3)",
    )  # fmt: skip
    parser.add_argument(
        "--faults", action="store_true", help="let faults be injected (tests and demos only)"
    )
    parser.add_argument(
        "--service-ms", type=float, default=0.0, metavar="MS",
        help="every computation holds its worker at least so long: stands for a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--trace", type=_collector, nargs="?", const=COLLECTOR, metavar="HOST:PORT",
        help=f"send traces there, OTLP over HTTP (without a value: {COLLECTOR}, where `proa trace`"
        " listens)",
    )  # fmt: skip
    parser.add_argument(
        "--trace-sample", type=number(0.0, 1.0), metavar="SHARE",
        help="share of the requests that are traced, 0 to 1 (default: with --trace, all)",
    )  # fmt: skip
    add_run_dir(parser)
    parser.add_argument("--quiet", action="store_true", help="do not show the services' output")


def _run(args: argparse.Namespace) -> int:
    from proa.local.embedded import embedded, run_until_signal

    options = Options(
        run_dir=args.run_dir,
        port=args.port,
        admin_port=args.admin_port,
        workers=args.workers,
        faults=args.faults,
        service_ms=args.service_ms,
    )
    sink = silent if args.quiet else printer()
    announce: Callable[[Topology], None] = _emit_ready if args.json else _say_ready(args)
    with _environment(_tracing(args)):
        asyncio.run(run_until_signal(embedded(args.specs, options, sink=sink), announce))
    return OK


def _tracing(args: argparse.Namespace) -> dict[str, str | None]:
    """Variables of all processes; None: not to be there."""
    found: dict[str, str | None] = {}
    if args.trace is not None:
        found = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{args.trace}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SDK_DISABLED": None,
            "PROA_TRACE_SAMPLE": "1",
            "PROA_WORKER_TRACE_URL": None,
        }
    if args.trace_sample is not None:
        found["PROA_TRACE_SAMPLE"] = f"{args.trace_sample:g}"
    return found


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Of the processes that are started inside."""
    before = {name: os.environ.get(name) for name in changes}

    def change(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    change(changes)
    try:
        yield
    finally:
        change(before)


def _collector(text: str) -> str:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65_535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:PORT (--trace without a value goes behind the SPECs)"
        )
    return text


def printer() -> Callable[[str, str], None]:
    from proa.local.logs import LogPrinter

    return LogPrinter(sys.stderr)


def silent(_name: str, _line: str) -> None:
    """--quiet."""


def _say_ready(args: argparse.Namespace) -> Callable[[Topology], None]:
    where = "" if args.run_dir == Path(".proa") else f" --run-dir {args.run_dir}"

    def say_ready(topology: Topology) -> None:
        model = topology.models[0].name
        names = ", ".join(plan.name for plan in topology.models)
        say()
        say(f"ready: grpc://{topology.address}  serving {names} with {_processes(topology)}")
        say(f"       http://{topology.admin_address}/  the console   Ctrl-C drains and stops")
        if args.trace is not None:
            say(f"       traces go to http://{args.trace}   see them: proa trace")
        say(f"next:  proa infer {model} --random{where}")
        say()

    return say_ready


def _emit_ready(topology: Topology) -> None:
    emit(
        {
            "event": "ready",
            "pid": os.getpid(),
            "address": topology.address,
            "admin_address": topology.admin_address,
            "models": [plan.name for plan in topology.models],
            "processes": [spec.name for spec in topology.processes],
        }
    )


def _processes(topology: Topology) -> str:
    """`3 workers, encoder, decoder, frontend`."""
    kinds = Counter(spec.name.partition("-")[0] for spec in topology.processes)
    return ", ".join(f"{n} {kind}s" if n > 1 else kind for kind, n in kinds.items())
