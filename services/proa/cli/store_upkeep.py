"""proa store recover, scrub, snapshot, restore, drill."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, say
from proa.cluster.settings import S3_ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from proa.api.v1.store_pb2 import ScrubProgress


def register(store: Verbs, add_address: Callable[[argparse.ArgumentParser], None]) -> None:
    """`add_address`: --address and --run-dir."""
    recover = add_verb(store, "recover", _recover, "wait until a store is whole again")
    _add_rate(recover, "decoded", "(default: as the agents are set)")
    add_address(recover)

    scrub = add_verb(store, "scrub", _scrub, "read every row, repair what is not as it was written")
    _add_rate(scrub, "read", "(default: as the agents are set)")
    add_address(scrub)

    snapshot = add_verb(store, "snapshot", _snapshot, "write all tables, of one moment, to files")
    snapshot.add_argument(
        "place",
        metavar="PLACE",
        help="a new directory on the coordinator's machine, or s3://BUCKET/FOLDER",
    )
    add_address(snapshot)

    restore = add_verb(store, "restore", _restore, "bring tables to what a snapshot has")
    restore.add_argument("place", metavar="PLACE", help="directory or s3:// of the snapshot")
    restore.add_argument(
        "--s3-endpoint", default=S3_ENDPOINT, metavar="URL",
        help="of the bucket; credentials: AWS_* variables (default: %(default)s)",
    )  # fmt: skip
    restore.add_argument(
        "--s3-region", metavar="NAME", help="of the bucket (default: the server is asked)"
    )
    restore.add_argument(
        "--lost", action="store_true", help="only rows that nothing else can bring back"
    )
    restore.add_argument(
        "--reader-user", default="", metavar="NAME",
        help="user of the shards' servers (default: their default user)",
    )  # fmt: skip
    restore.add_argument(
        "--reader-password-file", type=Path, metavar="FILE", help="file with its password"
    )
    add_address(restore)
    _register_drill(store)


def _register_drill(store: Verbs) -> None:
    drill = add_verb(
        store, "drill", _drill, "kill shards of a store of its own while rows are trained"
    )
    for name, least, most, default, what in (
        ("-k", 1, 16, 2, "data blocks of a stripe"),
        ("-r", 1, 2, 1, "parity blocks of a stripe, and shards killed at once"),
        ("--shards", 0, 64, 0, "0: k + r + 1"),
        ("--rows", 100, 100_000_000, 20_000, "of the table"),
        ("--dim", 1, 8192, 16, "of the table"),
        ("--kills", 1, 10_000, 5, "one after the other"),
        ("--seed", 0, 1 << 31, 0, "of gradients and of who dies"),
    ):
        drill.add_argument(
            name, type=integer(least, most), default=default, help=f"{what} (default: %(default)s)"
        )
    drill.add_argument(
        "--run-dir", type=Path, default=Path(".proa-drill"), metavar="DIR",
        help="where the store keeps sockets and run.json (default: %(default)s)",
    )  # fmt: skip


def _add_rate(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    parser.add_argument(
        "--rows-per-s", type=integer(1, 1 << 30), default=0, metavar="N",
        help=f"rows {what} per second and shard at most {default}",
    )  # fmt: skip


def address_of(args: argparse.Namespace) -> str:
    from proa.local.run_file import read_run

    return str(args.address or read_run(args.run_dir, "proa store up").address)


@contextmanager
def _bar(args: argparse.Namespace) -> Iterator[Progress]:
    """Drawn on a terminal only, and not with --json."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    shown = not args.json and console.is_terminal
    with Progress(*columns, console=console, disable=not shown) as progress:
        yield progress


def _tree(message: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


# --- recover


def _recover(args: argparse.Namespace) -> int:
    return asyncio.run(_recover_all(args))


async def _recover_all(args: argparse.Namespace) -> int:
    from proa.api.v1 import store_pb2
    from proa.local.store import asked

    request = store_pb2.RecoverRequest(rows_per_s_max=args.rows_per_s)
    last = store_pb2.RecoverProgress()
    most = 0
    with _bar(args) as bar:
        rows = bar.add_task("rows", total=None)
        parity = bar.add_task("parity blocks", total=None)
        async for last in asked(address_of(args), lambda stub: stub.Recover(request), args.tls_dir):
            most = max(most, last.parity_pending)
            bar.update(rows, total=last.rows_done + last.rows_pending, completed=last.rows_done)
            bar.update(parity, total=most, completed=most - last.parity_pending)
            if args.json:
                emit(_tree(last))
    if not args.json:
        say(f"{last.rows_done:,} rows decoded; nothing is left to decode")
        if last.rows_lost:
            say(f"{last.rows_lost:,} rows are lost: proa store restore DIR --lost")
    return FAILED if last.rows_lost else OK


# --- scrub


def _scrub(args: argparse.Namespace) -> int:
    return asyncio.run(_scrub_all(args))


async def _scrub_all(args: argparse.Namespace) -> int:
    from proa.api.v1 import store_pb2
    from proa.local.store import asked
    from proa.store.findings import named

    request = store_pb2.ScrubRequest(rows_per_s_max=args.rows_per_s)
    last = store_pb2.ScrubProgress()
    with _bar(args) as bar:
        rows = bar.add_task("rows read", total=None)
        async for last in asked(address_of(args), lambda stub: stub.Scrub(request), args.tls_dir):
            bar.update(rows, completed=last.rows_read)
            if args.json:
                emit(_tree(last))
                continue
            for one in last.findings:
                bar.console.print(named(one), highlight=False)
    if not args.json:
        say(
            f"{last.rows_read:,} rows read, {last.rows_compared:,} of parity compared:"
            f" {last.rows_bad:,} bad, {last.rows_repaired:,} of them repaired;"
            f" {last.stripes_bad:,} parity blocks wrong, {last.stripes_repaired:,} of them"
            " collected anew"
        )
        if last.stripes_unread:
            say(
                f"not compared: {last.stripes_unread:,} parity blocks, being collected or behind"
                " their data all the time; scrub again later"
            )
        if last.shards_failed:
            say(f"not read to the end: shards {', '.join(map(str, last.shards_failed))}")
    return OK if _is_clean(last) else FAILED


def _is_clean(total: ScrubProgress) -> bool:
    """Whether all was read, and what was bad is repaired."""
    return (
        total.done
        and not total.stripes_unread
        and total.rows_repaired == total.rows_bad
        and total.stripes_repaired == total.stripes_bad
    )


# --- snapshot, restore


def _snapshot(args: argparse.Namespace) -> int:
    return asyncio.run(_snapshot_all(args, _place(args)))


def _place(args: argparse.Namespace) -> str:
    """As the store names places: a path is of this process's directory."""
    text = str(args.place)
    return text if "://" in text else str(Path(text).resolve())


async def _snapshot_all(args: argparse.Namespace, destination: str) -> int:
    from proa.api.v1 import store_pb2
    from proa.local.store import asked

    request = store_pb2.SnapshotRequest(destination=destination)
    reports = asked(address_of(args), lambda stub: stub.Snapshot(request), args.tls_dir)
    last = store_pb2.SnapshotProgress()
    with _bar(args) as bar:
        rows = bar.add_task("rows written", total=None)
        async for last in reports:
            bar.update(rows, completed=last.rows_written)
            if args.json:
                emit(_tree(last))
    if not args.json:
        say(f"{last.rows_written:,} rows, {last.bytes_written / 1e6:,.1f} MB: {destination}")
    return OK if last.done else FAILED


def _restore(args: argparse.Namespace) -> int:
    return asyncio.run(_restore_all(args))


async def _restore_all(args: argparse.Namespace) -> int:
    from proa.api.v1 import store_pb2
    from proa.local.store import asked
    from proa.store import snapshot
    from proa.store.access import read_access
    from proa.store.client import StoreClient
    from proa.store.places import place_of

    access = read_access(
        args.tls_dir, args.reader_user, args.reader_password_file,
        ("--reader-user", "--reader-password-file"),
    )  # fmt: skip
    place = place_of(_place(args), os.environ, args.s3_endpoint, args.s3_region)
    found = snapshot.Snapshot.read(place)
    address = address_of(args)
    recover = store_pb2.RecoverRequest()
    total = sum(table.rows for table, _ in found.tables)
    last = snapshot.Progress(0, 0, 0)
    with _bar(args) as bar:
        rows = bar.add_task("rows", total=total)
        # A row that can still be decoded is not lost: let that end first.
        async for _ in asked(address, lambda stub: stub.Recover(recover), args.tls_dir):
            pass
        async with StoreClient(address, access=access) as client:
            async for last in snapshot.restore(client, found, only_lost=args.lost):
                bar.update(rows, completed=last.rows)
        async for _ in asked(address, lambda stub: stub.Recover(recover), args.tls_dir):
            pass
    tree = {"tables": len(found.tables), "rows": last.rows, "rows_changed": last.written}
    if args.json:
        emit(tree)
    else:
        say(f"{len(found.tables)} tables, {last.rows:,} rows: {last.written:,} of them changed")
    return OK


# --- drill


def _drill(args: argparse.Namespace) -> int:
    from proa.local.drill import DrillOptions, drill

    options = DrillOptions(
        run_dir=args.run_dir, k=args.k, r=args.r, shards=args.shards, rows=args.rows, dim=args.dim,
        kills=args.kills, seed=args.seed,
    )  # fmt: skip
    tell: Callable[[str], None] = (lambda _line: None) if args.json else say
    verdict = asyncio.run(drill(options, tell))
    if args.json:
        emit(verdict.tree())
    else:
        say(
            f"{verdict.steps:,} steps of {verdict.rows_pushed:,} rows acknowledged,"
            f" {len(verdict.kills)} kills; {verdict.rows_compared:,} rows compared byte by byte:"
            f" {verdict.wrong:,} wrong; {verdict.parity_wrong:,} parity blocks wrong"
        )
        say("PASSED" if verdict.passed else "FAILED")
    return OK if verdict.passed else FAILED
