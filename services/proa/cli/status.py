"""proa status."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from proa.cli.common import FAILED, OK, Verbs, add_run_dir, add_verb, emit, integer
from proa.cli.security import add_security, tls_of, token_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from proa.local.run_file import Run

_DEADLINE_S = 10.0
_MESSAGE_BYTES_MAX = 16 << 20
_WIDTH_OF_FILES = 160  # a pipe has no width; nothing is to be cut off in it
_STYLES = {
    **dict.fromkeys(("up", "ready"), "green"),
    "suspected": "yellow",
    **dict.fromkeys(("quarantined", "gone", "failed"), "red"),
}


def register(verbs: Verbs) -> None:
    parser = add_verb(verbs, "status", _run, "what runs, and how each model is doing")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--interval-ms", type=integer(100, 60_000), default=1000, metavar="MS",
        help="between reports, with --watch (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a frontend (default: the one in --run-dir)"
    )
    add_run_dir(parser)
    add_security(parser)


def _run(args: argparse.Namespace) -> int:
    return asyncio.run(_show(args))


async def _show(args: argparse.Namespace) -> int:
    from contextlib import aclosing

    reports = _reports(args)
    async with aclosing(reports):
        if args.json:
            return await _emit(args, reports)
        return await _draw(args, reports)


def _address(args: argparse.Namespace) -> str:
    from proa.local.run_file import read_run

    return str(args.address or read_run(args.run_dir).address)


def _run_of(args: argparse.Namespace) -> Run | None:
    from proa.local.run_file import read_run

    return None if args.address else read_run(args.run_dir)


async def _reports(args: argparse.Namespace) -> AsyncGenerator[Mapping[str, Any], None]:
    """StatusReports as JSON trees: one, or with --watch without end."""
    from google.protobuf.json_format import MessageToDict

    from proa import rpc
    from proa.api.v1 import frontend_pb2, frontend_pb2_grpc

    address, tls, metadata = _address(args), tls_of(args), rpc.bearer(token_of(args))
    async with rpc.connect(
        address, message_bytes_max=_MESSAGE_BYTES_MAX, tls=tls.read() if tls else None
    ) as channel:
        stub = frontend_pb2_grpc.FrontendStub(channel)  # type: ignore[no-untyped-call]
        request = frontend_pb2.StatusRequest(interval_ms=args.interval_ms)
        timeout = None if args.watch else _DEADLINE_S
        async with rpc.peer_errors(f"frontend {address}"):
            async for report in stub.Status(request, timeout=timeout, metadata=metadata):
                yield MessageToDict(
                    report,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                if not args.watch:
                    return


async def _emit(args: argparse.Namespace, reports: AsyncIterator[Mapping[str, Any]]) -> int:
    code = FAILED
    async for report in reports:
        run = _run_of(args)
        emit({"run": asdict(run) if run else None, "report": report})
        code = OK
    return code


async def _draw(args: argparse.Namespace, reports: AsyncIterator[Mapping[str, Any]]) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    if not args.watch:
        async for report in reports:
            console.print(_render(_run_of(args), report))
        return OK
    with Live(console=console, auto_refresh=False) as live:
        async for report in reports:
            live.update(_render(_run_of(args), report), refresh=True)
    return OK


def _render(run: Run | None, report: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = [_models_table(report["models"]), *_reasons(report["models"])]
    parts += [_workers_table(model) for model in report["models"]]
    faults = _active_faults(report)
    if faults:
        parts.append(_faults_table(faults, int(report["unix_ms"])))
    if run is not None:
        parts.append(_processes_table(run))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _models_table(models: list[Mapping[str, Any]]) -> Table:
    table = _table(
        "models",
        "model", "policy", "queue", "answered", "reconstructed", "failed", "extra",
        "p50 ms", "p99 ms", "p99.9 ms", "agreement",
    )  # fmt: skip
    for model in models:
        answers = {source: int(count) for source, count in model["answers"].items()}
        answered = sum(answers.values())
        extra = int(model["redundant_sent"]) / answered if answered else 0.0
        table.add_row(
            model["name"],
            _policy(model),
            str(model["queue_depth"]),
            str(answered),
            str(answers.get("reconstructed", 0)),
            str(model["failed"]),
            f"{extra:.1%}",
            *(f"{model[f'{p}_ms']:.1f}" for p in ("p50", "p99", "p999")),
            _agreement(model),
        )
    return table


def _policy(model: Mapping[str, Any]) -> str:
    """What acts now; why it is not what the spec says stands below the table."""
    mode = "" if model["mode"] == "enforce" else f" ({model['mode']})"
    return f"{model['policy_in_force'] or model['policy']}{mode}"


def _reasons(models: list[Mapping[str, Any]]) -> list[str]:
    return [
        f"{model['name']}: {model['policy_in_force']} instead of {model['policy']}: {model['why']}"
        for model in models
        if model["why"]
    ]


def _agreement(model: Mapping[str, Any]) -> str:
    samples = int(model["agreement_samples"])
    return f"{model['agreement']:.3f} of {samples}" if samples else "-"


def _workers_table(model: Mapping[str, Any]) -> Table:
    # Few models are protected: the columns are for those that are.
    checked = any(int(worker["checks"]) or int(worker["faults"]) for worker in model["workers"])
    table = _table(
        f"workers of {model['name']}",
        "worker", "state", "programs", "domain", "in flight", "ms", "answered", "errors",
        *(("checks", "faults") if checked else ()),
    )  # fmt: skip
    for worker in model["workers"]:
        table.add_row(
            worker["name"],
            _styled(worker["state"]),
            " ".join(worker["roles"]),
            worker["domain"],
            str(worker["inflight"]),
            f"{worker['latency_ms']:.1f}",
            str(worker["answered"]),
            str(worker["errors"]),
            *((str(worker["checks"]), str(worker["faults"])) if checked else ()),
        )
    return table


def _active_faults(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that act now."""
    now_ms = int(report["unix_ms"])
    return [one for one in report["faults"] if int(one["end_unix_ms"]) > now_ms]


def _faults_table(faults: list[Mapping[str, Any]], now_ms: int) -> Table:
    from rich.text import Text

    table = _table("faults that act now", "fault", "action", "target", "for s", "left s")
    for fault in faults:
        since_ms = now_ms - int(fault["begin_unix_ms"])
        left_ms = int(fault["end_unix_ms"]) - now_ms
        table.add_row(
            # Text, not markup: whoever announces a fault names it.
            Text(fault["id"]),
            Text(fault["action"], style="red"),
            Text(fault["target"]),
            f"{since_ms / 1000:.0f}",
            f"{left_ms / 1000:.0f}",
        )
    return table


def _processes_table(run: Run) -> Table:
    table = _table("processes", "process", "state", "pid", "restarts", "address", "admin")
    for process in run.processes:
        table.add_row(
            process.name,
            _styled(process.state),
            str(process.pid or "-"),
            str(process.restarts),
            process.address,
            process.admin_address,
        )
    return table


def _styled(state: str) -> str:
    style = _STYLES.get(state.partition(":")[0], "default")
    return f"[{style}]{state}[/]"
