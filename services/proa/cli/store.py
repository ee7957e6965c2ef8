"""proa store: an embedding-parity store on this machine, and how one is doing."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa.cli import store_upkeep
from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, say
from proa.cli.up import printer, silent

if TYPE_CHECKING:
    from rich.table import Table

    from proa.api.v1.store_pb2 import StoreReport
    from proa.local.store import StoreTopology

RUN_DIR = Path(".proa-store")
_DEADLINE_S = 10.0
_WIDTH_OF_FILES = 160
_STYLES = {"open": "green", "opening": "yellow", "closed": "yellow", "starting": "yellow"}


def register(verbs: Verbs) -> None:
    group = verbs.add_parser("store", help="embedding tables that outlive the servers they are on")
    group.description = "Embedding tables that outlive the servers they are on."
    store = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    _register_up(store)
    _register_status(store)
    store_upkeep.register(store, _add_address)


def _register_up(store: Verbs) -> None:
    up = add_verb(store, "up", _up, "run a store on this machine: coordinator, agents, Valkey")
    port = integer(0, 65_535)
    up.add_argument(
        "--port", type=port, default=8021,
        help="of the coordinator, gRPC; 0: any free one (default: %(default)s)",
    )  # fmt: skip
    up.add_argument(
        "--admin-port", type=port, default=9091,
        help="of the coordinator, livez, readyz, metrics; 0: any (default: %(default)s)",
    )  # fmt: skip
    up.add_argument(
        "-k", type=integer(1, 16), default=2, help="data blocks of a stripe (default: %(default)s)"
    )
    up.add_argument(
        "-r", type=integer(0, 2), default=1,
        help="parity blocks of a stripe: losses that cost nothing (default: %(default)s)",
    )  # fmt: skip
    up.add_argument(
        "--shards", type=integer(1, 64), default=0, metavar="N", help="(default: k + r + 1)"
    )
    up.add_argument(
        "--memory-mb", type=integer(16, 1 << 22), default=0, metavar="MB",
        help="of each shard; at the limit pushes are refused (default: no limit)",
    )  # fmt: skip
    up.add_argument(
        "--faults", action="store_true", help="let experiments inject faults into the agents"
    )
    _add_run_dir(up)
    up.add_argument("--quiet", action="store_true", help="do not show the processes' output")


def _register_status(store: Verbs) -> None:
    status = add_verb(store, "status", _status, "shards, redundancy and tables of a store")
    status.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    status.add_argument(
        "--interval-ms", type=integer(100, 60_000), default=1000, metavar="MS",
        help="between reports, with --watch (default: %(default)s)",
    )  # fmt: skip
    _add_address(status)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a coordinator (default: the one in --run-dir)"
    )
    parser.add_argument(
        "--tls-dir", type=Path, metavar="DIR",
        help="tls.crt, tls.key and ca.crt: speak TLS with the coordinator, as who they are for",
    )  # fmt: skip
    _add_run_dir(parser)


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, default=RUN_DIR, metavar="DIR",
        help="where `proa store up` keeps sockets and run.json (default: %(default)s)",
    )  # fmt: skip


# --- up


def _up(args: argparse.Namespace) -> int:
    from proa.local.embedded import run_until_signal
    from proa.local.store import StoreOptions, embedded_store

    options = StoreOptions(
        run_dir=args.run_dir,
        port=args.port,
        admin_port=args.admin_port,
        k=args.k,
        r=args.r,
        shards=args.shards,
        memory_bytes_max=args.memory_mb << 20,
        faults=args.faults,
    )
    sink = silent if args.quiet else printer()
    announce: Callable[[StoreTopology], None] = _emit_ready if args.json else _say_ready
    asyncio.run(run_until_signal(embedded_store(options, sink=sink), announce))
    return OK


def _emit_ready(topology: StoreTopology) -> None:
    emit({"ready": True, "address": topology.address, "admin": topology.admin_address})


def _say_ready(topology: StoreTopology) -> None:
    shards = len(topology.directories)
    say()
    say(f"ready: grpc://{topology.address}  {shards} shards, k = {topology.k}, r = {topology.r}")
    say(f"       rows survive the loss of any {topology.r}; all are gone when this ends (Ctrl-C)")


# --- status


def _status(args: argparse.Namespace) -> int:
    return asyncio.run(_show(args))


async def _show(args: argparse.Namespace) -> int:
    from contextlib import aclosing, nullcontext

    from rich.console import Console
    from rich.live import Live

    from proa.api.v1 import store_pb2
    from proa.local.store import asked

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    live = Live(console=console, auto_refresh=False) if _draws(args) else None
    request = store_pb2.StoreStatusRequest(interval_ms=args.interval_ms)
    timeout_s = None if args.watch else _DEADLINE_S
    reports = asked(
        store_upkeep.address_of(args),
        lambda stub: stub.Status(request, timeout=timeout_s),
        args.tls_dir,
    )
    with live or nullcontext():
        async with aclosing(reports):
            async for report in reports:
                tree = _tree(report)
                if args.json:
                    emit(tree)
                elif live is None:
                    console.print(_table(tree))
                else:
                    live.update(_table(tree), refresh=True)
                if not args.watch:
                    return OK
    return FAILED


def _tree(report: StoreReport) -> Mapping[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(
        report, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _draws(args: argparse.Namespace) -> bool:
    import sys

    return bool(args.watch and not args.json and sys.stdout.isatty())


def _table(report: Mapping[str, Any]) -> Table:
    from rich.table import Table

    tables = ", ".join(
        f"{one['table']['name']} [{int(one['table']['rows']):,} x {one['table']['dim']}]"
        + (" (being created)" if one["creating"] else "")
        for one in report["tables"]
    )
    found = Table(
        title=f"k = {report['k']}, r = {report['r']}: every row survives"
        f" {report['redundancy']} losses now",
        caption=f"tables: {tables or 'none'}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("shard", "domain"):
        found.add_column(name)
    found.add_column("state")
    for name in ("epoch", "to decode", "lost", "parity to do", "outbox", "pushes", "memory MB"):
        found.add_column(name, justify="right")
    for one in report["shards"]:
        state = one["state"]
        found.add_row(
            str(one["shard"]),
            one["domain"],
            f"[{_STYLES.get(state, 'red')}]{state}[/]",
            *(
                f"{int(one[name]):,}"
                for name in (
                    "epoch", "rows_pending", "rows_lost", "parity_incomplete", "outbox", "pushes",
                )
            ),
            f"{int(one['memory_bytes']) / 1e6:,.1f}",
        )  # fmt: skip
    return found
