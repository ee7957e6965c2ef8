"""`proa`: reads the command line, runs the verb, turns errors into exit codes.

0 ok; 1 a failed verdict or an error while working; 2 wrong usage, settings, spec or input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from proa import __version__
from proa.cli import abft, chaos, demo, doctor, infer, pack, status, store, trace, train, up
from proa.cli.common import FAILED, USAGE
from proa.errors import InvalidRequest, ProaError, SettingsError, SpecError

_WRONG_USE = (SettingsError, SpecError, InvalidRequest)
_INTERRUPTED = 130  # what shells report for SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A ProaError is one line on stderr."""
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except ProaError as exc:
        sys.stderr.write(f"proa: {exc}\n")
        return USAGE if isinstance(exc, _WRONG_USE) else FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `proa status | head`
        sys.stderr.close()
        return FAILED
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="proa", description="Coded redundancy for model serving.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"proa {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for group in (doctor, train, pack, up, status, infer, trace, chaos, abft, store, demo):
        group.register(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
