"""proa trace."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, number, say
from proa.errors import EnvironmentLacks, SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proa.traces.book import Book
    from proa.traces.choice import Choice
    from proa.traces.receiver import Ports
    from proa.traces.view import View

_WANTS = ("any", "reconstructed", "hedge", "replica", "retry", "failed", "slow")
_LOOK_S = 0.1
_TELL_S = 10.0  # between lines that say what was seen meanwhile


def register(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "trace", _run, "draw the next request: who was asked, who was late, who answered"
    )
    parser.add_argument(
        "--want", choices=_WANTS, default="any",
        help="by who answered it, or how it ended (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--id", type=_trace_id, metavar="TRACE_ID", help="only of this trace")
    parser.add_argument("--follow", action="store_true", help="go on after the first one")
    parser.add_argument(
        "--list", action="store_true", help="a line for each request instead of a picture"
    )
    parser.add_argument(
        "--wait", type=number(0.0, 86_400.0), metavar="S",
        help="end after so long, with exit code 1 if nothing came (default: wait for ever)",
    )  # fmt: skip
    parser.add_argument(
        "--settle", type=number(0.0, 86_400.0), default=2.0, metavar="S",
        help="a request is drawn when nothing of it came for so long (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("out/trace"), metavar="DIR",
        help="for trace.html (default: %(default)s)",
    )  # fmt: skip
    for flag, default, what in (("--port", 4318, "HTTP"), ("--grpc-port", 4317, "gRPC")):
        parser.add_argument(
            flag, type=integer(0, 65_535), default=default,
            help=f"for OTLP over {what}; 0: any free one (default: %(default)s)",
        )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    return asyncio.run(_trace(args))


async def _trace(args: argparse.Namespace) -> int:
    from proa.traces.book import Book
    from proa.traces.receiver import Ports

    _prepare(args.out)
    book = Book()
    async with _receiving(Ports(args.port, args.grpc_port), book) as ports:
        _tell(f"listening: http://127.0.0.1:{ports.http} and, for gRPC, 127.0.0.1:{ports.grpc}")
        _tell("now serve with `proa up SPEC --trace` and send requests; Ctrl-C ends")
        return await _watch(args, book)


@asynccontextmanager
async def _receiving(ports: Ports, book: Book) -> AsyncIterator[Ports]:
    from proa.traces.receiver import receiving

    async with receiving(ports, lambda spans: book.add(spans, time.monotonic())) as found:
        yield found


async def _watch(args: argparse.Namespace, book: Book) -> int:
    from proa.traces.choice import Choice
    from proa.traces.view import view

    choice = Choice(book, args.want, args.settle, args.id or "")
    began = told = time.monotonic()
    shown = 0
    while True:
        now = time.monotonic()
        for story in choice.take(now):
            _show(args, view(story))
            shown += 1
            if not (args.follow or args.list):
                return OK
        if args.wait is not None and now - began >= args.wait:
            if not shown:
                _tell(f"nothing to draw within {args.wait:g} s: {_seen(args, choice, book)}")
            return OK if shown else FAILED
        if not shown and now - told >= _TELL_S:
            told = now
            _tell(f"waiting: {_seen(args, choice, book)}")
        await asyncio.sleep(_LOOK_S)


def _seen(args: argparse.Namespace, choice: Choice, book: Book) -> str:
    if not len(book):
        return "no span came yet"
    if not choice.seen:
        return f"no request is complete yet, {len(book)} spans came"
    wanted = "" if args.want == "any" else f", none of them {args.want}"
    return f"{choice.seen} requests in {len(book)} spans{wanted}"


def _show(args: argparse.Namespace, shown: View) -> None:
    from proa.traces.view import to_json

    if args.list:
        _show_line(args, shown)
        return
    path = _write(args, shown)
    if args.json:
        emit({**to_json(shown), "page": str(path)})
        return
    from rich.console import Console

    from proa.traces.terminal import print_view

    print_view(shown, Console(highlight=False))
    say()
    say(f"page: {path}")
    say()


def _show_line(args: argparse.Namespace, shown: View) -> None:
    root = shown.story.root
    if args.json:
        emit(
            {
                "trace_id": root.trace_id,
                "model": root.text("proa.model"),
                "source": shown.story.source,
                "reply_ms": round(shown.reply_ms, 3),
                "verdict": shown.verdict,
            }
        )
    else:
        say(f"{root.trace_id}  {root.text('proa.model')}  {shown.verdict}")


def _prepare(out: Path) -> None:
    """Better now than after a long wait."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(f"--out {out}: cannot be made: {exc.strerror}") from exc


def _write(args: argparse.Namespace, shown: View) -> Path:
    from proa.traces.page import write_page

    try:
        return write_page(shown, args.out)
    except OSError as exc:
        raise EnvironmentLacks(f"--out {args.out}: cannot write there: {exc.strerror}") from exc


def _tell(text: str) -> None:
    """What is no result goes to stderr, so that pipes get only pictures or JSON."""
    sys.stderr.write(f"proa trace: {text}\n")
    sys.stderr.flush()


def _trace_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{4,32}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not 4 to 32 hexadecimal digits")
    return text.lower()
