"""run.json: what runs in a run directory, for `proa status` and `proa infer`."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from proa.errors import SettingsError, Unavailable
from proa.local.processes import ProcessStatus
from proa.local.session import start_ticks

FILE_NAME = "run.json"
_VERSION = 1


@dataclass(frozen=True)
class RunningProcess:
    """One process as of the last change. `pid` None: it is down."""

    name: str
    state: str
    pid: int | None
    restarts: int
    address: str
    admin_address: str


@dataclass(frozen=True)
class Run:
    """A running `proa up`: its frontend's addresses, model names and processes."""

    pid: int
    start_ticks: int
    started_unix: float
    address: str
    admin_address: str
    models: tuple[str, ...]
    processes: tuple[RunningProcess, ...]

    @property
    def alive(self) -> bool:
        """Whether the process that wrote it still runs; its pid alone may name another by now."""
        return start_ticks(self.pid) == self.start_ticks


class Named(Protocol):
    """A model."""

    @property
    def name(self) -> str: ...


class Laid(Protocol):
    """What run.json says of a topology."""

    @property
    def address(self) -> str: ...
    @property
    def admin_address(self) -> str: ...
    @property
    def models(self) -> Sequence[Named]: ...


class RunFile:
    """Writes run.json while we run. One `proa up` has one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._started_unix = time.time()

    def claim(self) -> None:
        """Raises SettingsError when another `proa up` runs here. A file left by a dead one goes."""
        found = _read(self._path)
        if found is not None and found.alive and found.pid != os.getpid():
            raise SettingsError(
                f"{self._path}: process {found.pid} already runs here, at {found.address}; stop it,"
                " or choose another directory with --run-dir"
            )
        self.remove()

    def write(self, topology: Laid, processes: Sequence[ProcessStatus]) -> None:
        """Replace the file in one step: a reader sees the old or the new one."""
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        run = Run(
            pid=os.getpid(),
            start_ticks=ticks,
            started_unix=self._started_unix,
            address=topology.address,
            admin_address=topology.admin_address,
            models=tuple(model.name for model in topology.models),
            processes=tuple(_running(status) for status in processes),
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": _VERSION, **asdict(run)}, indent=2) + "\n"
        with tempfile.NamedTemporaryFile(
            "w", dir=self._path.parent, prefix=".run-", suffix=".json", delete=False
        ) as file:
            file.write(text)
        Path(file.name).replace(self._path)

    def remove(self) -> None:
        """Nothing runs here any more."""
        self._path.unlink(missing_ok=True)


def read_run(run_dir: Path, command: str = "proa up SPEC") -> Run:
    """The `proa up` that runs in `run_dir`. Raises Unavailable, saying how to start one."""
    path = run_dir / FILE_NAME
    run = _read(path)
    if run is None:
        raise Unavailable(f"{path}: nothing runs here; start it with `{command}`")
    if not run.alive:
        raise Unavailable(
            f"{path}: left behind by process {run.pid}, which is gone; start again: `{command}`"
        )
    return run


def _running(status: ProcessStatus) -> RunningProcess:
    return RunningProcess(
        name=status.name,
        state=status.state.value,
        pid=status.pid,
        restarts=status.restarts,
        address=f"127.0.0.1:{status.port}",
        admin_address=f"127.0.0.1:{status.admin_port}",
    )


def _read(path: Path) -> Run | None:
    """None when there is no file, or none of ours."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
        if tree.pop("version") != _VERSION:
            return None
        processes = tuple(RunningProcess(**entry) for entry in tree.pop("processes"))
        return Run(**{**tree, "models": tuple(tree["models"]), "processes": processes})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
