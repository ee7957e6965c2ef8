"""A real worker: `python -m proa.worker` with a real tritonserver, on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import proa
from fakes.eventually import eventually_sync
from proa.local.ports import Ports
from proa.worker.launch import SHM, shm_prefix

_PORTS = Ports()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now, and no connection of another test will take."""
    return [_PORTS.free() for _ in range(count)]


class WorkerProcess(AbstractContextManager["WorkerProcess"]):
    """Started on enter and ready; killed on exit if it still runs.

    `settings`: further variables, named without PROA_WORKER_. Output goes to `folder`/worker.log.
    """

    def __init__(self, repository: Path, folder: Path, **settings: str) -> None:
        self.scratch = folder / "scratch"
        self.log = folder / "worker.log"
        self.port, self.http_port, self.metrics_port, self.admin_port = free_ports(4)
        own = {
            "REPOSITORY": repository, "SCRATCH": self.scratch, "PORT": self.port,
            "HTTP_PORT": self.http_port, "METRICS_PORT": self.metrics_port,
            "ADMIN_PORT": self.admin_port,
        }  # fmt: skip
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(proa.__file__).parents[1]),
            **{f"PROA_WORKER_{name}": str(value) for name, value in (own | settings).items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proa.worker"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        return self

    def __enter__(self) -> Self:
        self.start()
        eventually_sync(lambda: self.ready() or self._ended(), timeout_s=90.0)
        assert not self._ended(), self.log.read_text()
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._ended():
            self.stop()

    def ready(self) -> bool:
        """What /readyz says; False while nobody listens."""
        return self.page("readyz")[0] == 200

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of an admin page; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def processes(self, name: str) -> list[int]:
        """Ids of living processes of this worker: tritonserver or triton_python_backend_stub."""
        return [
            pid for pid, arguments in running() if name in arguments[0] and self._owns(arguments)
        ]

    def left_over(self) -> list[str]:
        """What a worker must not leave behind: files in scratch and shared memory."""
        regions = (p for p in SHM.iterdir() if p.name.startswith(shm_prefix(self.scratch)))
        return [str(path) for path in (*self.scratch.iterdir(), *regions)]

    def _owns(self, arguments: list[str]) -> bool:
        return any(str(self.scratch) in argument for argument in arguments)

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


def running() -> list[tuple[int, list[str]]]:
    """Processes that are no zombies: id and arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if arguments[0]:
            found.append((int(folder.name), arguments))
    return found
