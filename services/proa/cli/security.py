"""Flags of verbs that call a frontend behind TLS and tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from proa.errors import InvalidRequest

if TYPE_CHECKING:
    from proa.rpc import Tls

_TOKEN_FILE_BYTES_MAX = 4096


def add_security(parser: argparse.ArgumentParser) -> None:
    """--tls-*, --token-file."""
    group = parser.add_argument_group("security")
    group.add_argument(
        "--tls", action="store_true", help="speak TLS; the other --tls flags imply it"
    )
    group.add_argument(
        "--tls-ca", type=Path, metavar="FILE",
        help="PEM certificates of the authorities to believe (default: those that gRPC brings)",
    )  # fmt: skip
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate of our own")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its PEM key")
    group.add_argument(
        "--tls-server-name", metavar="NAME",
        help="what the frontend's certificate is for, where that is not the host of the address",
    )  # fmt: skip
    group.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="file that holds the bearer token: flags can be seen by every user of the machine",
    )  # fmt: skip


def tls_of(args: argparse.Namespace) -> Tls | None:
    """TLS as the flags say; None without any."""
    from proa.rpc import Tls

    found = Tls(args.tls_ca, args.tls_cert, args.tls_key, args.tls_server_name)
    return found if args.tls or found != Tls() else None


def token_of(args: argparse.Namespace) -> str | None:
    """The token, without blanks and line ends around it. Errors: InvalidRequest."""
    path: Path | None = args.token_file
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_TOKEN_FILE_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"--token-file {path}: cannot be read: {exc}") from exc
    if len(text) > _TOKEN_FILE_BYTES_MAX:
        raise InvalidRequest(f"--token-file {path}: larger than {_TOKEN_FILE_BYTES_MAX} bytes")
    return text.strip()
