"""proa doctor."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from proa.cli.common import FAILED, OK, Verbs, add_verb, emit, integer, say

_MARKS = {"ok": ("ok  ", 32), "warn": ("warn", 33), "fail": ("FAIL", 31)}


def register(verbs: Verbs) -> None:
    parser = add_verb(verbs, "doctor", _run, "check that this machine can run proa; names each fix")
    port = integer(1, 65_535)
    parser.add_argument("--port", type=port, default=8001, help="to be free (default: %(default)s)")
    parser.add_argument(
        "--admin-port", type=port, default=9090, help="to be free (default: %(default)s)"
    )


def _run(args: argparse.Namespace) -> int:
    from proa.local.doctor import examine_here, healthy

    checks = examine_here((args.port, args.admin_port))
    good = healthy(checks)
    if args.json:
        found = [asdict(check) | {"level": check.level.value} for check in checks]
        emit({"ok": good, "checks": found})
        return OK if good else FAILED
    for check in checks:
        say(f"{_mark(check.level.value)}  {check.name:<13} {check.found}")
        if check.fix:
            say(f"{'':21}fix: {check.fix}")
    return OK if good else FAILED


def _mark(level: str) -> str:
    text, colour = _MARKS[level]
    return f"\x1b[{colour}m{text}\x1b[0m" if sys.stdout.isatty() else text
