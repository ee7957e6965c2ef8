"""Ports on loopback.

Chosen below the kernel's range for outgoing connections: a worker keeps its port while it is
down, and an outgoing connection must not land on it meanwhile.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from proa.errors import SettingsError, Unavailable

HOST = "127.0.0.1"
_FIRST = 10_240
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Ports:
    """Hands out ports that are free now, each one once."""

    def __init__(self) -> None:
        self._end = max(_ephemeral_start(), _FIRST + 1024)
        # Two supervisors that start together should not try the same ports in the same order.
        self._next = _FIRST + os.getpid() * 97 % (self._end - _FIRST)
        self._taken: set[int] = set()

    def claim(self, port: int, flag: str) -> int:
        """Port `port`, that the user asked for with `flag`; 0: any. SettingsError if taken."""
        if port == 0:
            return self.free()
        if not 1 <= port <= 65_535:
            raise SettingsError(f"{flag} {port}: a port is between 1 and 65535")
        if port in self._taken:
            raise SettingsError(f"{flag} {port}: this port is used twice")
        if not is_free(port):
            raise SettingsError(
                f"{flag} {port}: port {port} is taken by another process on this machine; stop it, "
                f"or choose another with {flag} (0: any free port)"
            )
        self._taken.add(port)
        return port

    def free(self) -> int:
        """A port nobody listens on. Raises Unavailable when there is none."""
        for _ in range(self._end - _FIRST):
            port, self._next = self._next, self._next + 1
            if self._next == self._end:
                self._next = _FIRST
            if port not in self._taken and is_free(port):
                self._taken.add(port)
                return port
        raise Unavailable(f"no free port between {_FIRST} and {self._end} on {HOST}")


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a service could listen on the port. Connections that wait to expire do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
