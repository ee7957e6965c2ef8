"""`proa up`: pack the specs, run everything, tell where it is, drain on the first signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from proa.errors import ProgramRefused, SpecError
from proa.local.child import Child
from proa.local.ports import Ports
from proa.local.processes import EXIT_SETTINGS, Limits, Sink, describe_exit
from proa.local.run_file import RunFile
from proa.local.supervisor import Supervisor, discard
from proa.local.topology import Options, Topology, plan, repository_dir
from proa.spec import CodedModel, load
from proa.worker.launch import clean_shm, shm_prefix

Laid = TypeVar("Laid", covariant=True)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Running:
    """Everything that runs."""

    topology: Topology
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def embedded(
    paths: Sequence[Path], options: Options, *, sink: Sink = discard, limits: Limits | None = None
) -> AsyncIterator[Running]:
    """Pack and start the specs at `paths`; on leaving, drain and remove every trace.

    Not yet ready on entry: `await running.supervisor.ready()`. Raises SpecError, SettingsError (a
    taken port, a run directory in use) and ProgramRefused before anything is started.
    """
    options = _absolute(options)
    run_file = RunFile(options.run_dir)
    run_file.claim()
    models = [load(path.resolve()) for path in paths]
    topology = plan(models, options, Ports())
    await _pack(models, options, sink)
    scratch = options.run_dir / "scratch"
    _sweep(scratch)
    for directory in topology.directories:
        directory.mkdir(parents=True)

    def write() -> None:
        run_file.write(topology, supervisor.status())

    supervisor = Supervisor(topology.processes, sink=sink, limits=limits, on_change=write)
    try:
        write()
        async with supervisor:
            yield Running(topology, supervisor)
    finally:
        run_file.remove()
        _sweep(scratch)


class Runs(Protocol[Laid]):
    """What `run_until_signal` asks of what runs."""

    @property
    def topology(self) -> Laid: ...
    @property
    def supervisor(self) -> Supervisor: ...


async def run_until_signal(
    running: AbstractAsyncContextManager[Runs[Laid]], announce: Callable[[Laid], None]
) -> None:
    """Run `embedded(...)` until SIGTERM or SIGINT, then drain; `announce` when all is ready.

    A second signal kills what still drains. Raises what `embedded` raises, and Unavailable when a
    process cannot be started.
    """
    up = _Up(running, announce)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, up.on_signal)
    try:
        await up.serve()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class _Up(Generic[Laid]):
    """What signals act on."""

    def __init__(
        self, running: AbstractAsyncContextManager[Runs[Laid]], announce: Callable[[Laid], None]
    ) -> None:
        self._running = running
        self._announce = announce
        self._supervisor: Supervisor | None = None
        self._serving: asyncio.Task[None] | None = None
        self._asked = False

    async def serve(self) -> None:
        self._serving = asyncio.create_task(self._serve())
        try:
            await self._serving
        except asyncio.CancelledError:
            if not self._asked:
                raise

    def on_signal(self) -> None:
        if self._asked:
            if self._supervisor is not None:
                self._supervisor.kill_all()
            return
        self._asked = True
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self) -> None:
        async with self._running as running:
            self._supervisor = running.supervisor
            await running.supervisor.ready()
            self._announce(running.topology)
            await running.supervisor.wait()


def _sweep(scratch: Path) -> None:
    """Remove scratch directories and shared memory, also those of a supervisor that was killed."""
    for directory in scratch.glob("worker-*"):
        clean_shm(shm_prefix(directory))
    shutil.rmtree(scratch, ignore_errors=True)


def _absolute(options: Options) -> Options:
    """Programs that we start may change directory."""
    return replace(options, run_dir=options.run_dir.resolve())


async def _pack(models: Sequence[CodedModel], options: Options, sink: Sink) -> None:
    """In processes of their own: packing loads torch, and we are to stay small."""
    for model in models:
        if model.model.endpoint is None:
            out = repository_dir(options.run_dir, model.name)
            await _pack_one(model.path, out, faults=options.faults, sink=sink)


async def _pack_one(spec: Path, out: Path, *, faults: bool, sink: Sink) -> None:
    argv = [sys.executable, "-m", "proa", "pack", str(spec), "-o", str(out)]
    argv += ["--faults"] if faults else []
    lines: list[str] = []
    child = Child(argv, os.environ, nice=0, on_line=lines.append)
    try:
        status = await child.exited()
    finally:
        child.kill()
        await child.clear()
    if status != 0:
        said = child.tail[-1].removeprefix("proa: ") if child.tail else describe_exit(status)
        raise (SpecError if status == EXIT_SETTINGS else ProgramRefused)(said)
    for line in lines:
        sink("pack", line)
