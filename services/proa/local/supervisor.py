"""The supervisor: starts processes, keeps them running, drains them in order. A library, too."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Self

from proa.errors import InvalidRequest, Unavailable
from proa.local.priority import Priority
from proa.local.processes import (
    Limits,
    ManagedProcess,
    ProcessSpec,
    ProcessStatus,
    Sink,
    State,
)


def discard(_name: str, _line: str) -> None:
    """A sink for output that nobody reads."""


class Supervisor:
    """Runs `specs` until `stop`. `async with Supervisor(specs) as s: await s.ready()`.

    `sink` gets every line of output as (process, line); `on_change` is called when a process's
    state changes. For one event loop, in a thread that lives on: processes die with the thread.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        sink: Sink = discard,
        limits: Limits | None = None,
        priority: Priority | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        names = [spec.name for spec in specs]
        assert len(set(names)) == len(names), f"two processes share a name: {names}"
        limits = limits or Limits()
        priority = priority or Priority.detect()
        self._processes = {
            spec.name: ManagedProcess(
                spec, sink=sink, limits=limits, priority=priority, on_change=on_change
            )
            for spec in specs
        }
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Start every process at once. They are ready when `ready` returns."""
        assert not self._keepers, "started twice"
        self._keepers = [
            asyncio.create_task(process.keep(), name=f"keep {name}")
            for name, process in self._processes.items()
        ]

    async def ready(self, *names: str) -> None:
        """Wait until the named processes (none: all) are ready.

        Raises Unavailable, with its last lines of output, when any process cannot be started.
        """
        chosen = [self._find(name) for name in names] or list(self._processes.values())
        for process in chosen:
            await self._watched(process.wait_for(State.READY))

    async def wait(self) -> None:
        """Run until `stop` is called elsewhere. Raises when a process cannot be kept running."""
        # Not gather: cancelled, it would cancel the keepers, which kill instead of draining.
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            keeper.result()

    def kill(
        self, name: str, number: signal.Signals = signal.SIGKILL, *, tree: bool = True
    ) -> None:
        """Signal a process and all it started, as when a machine fails; `tree=False`: it alone."""
        self._find(name).signal(number, tree=tree)

    def kill_all(self) -> None:
        """SIGKILL to everything: for who cannot wait for `stop`, which then ends at once."""
        for process in self._processes.values():
            process.signal(signal.SIGKILL, tree=True)

    def hold(self, name: str) -> None:
        """When the process ends, let it stay down until `release`."""
        self._find(name).hold()

    def release(self, name: str) -> None:
        """Undo `hold`, and start the process if it is down."""
        self._find(name).release()

    async def down(self, name: str) -> None:
        """Wait until a held process has ended."""
        await self._watched(self._find(name).wait_for(State.HELD))

    async def restart(self, name: str, env: Mapping[str, str]) -> None:
        """Drain a process, start it with `env` on top of its environment, wait until it is ready.

        Raises Unavailable when it cannot be started so; the others go on.
        """
        await self._watched(self._find(name).restart(env))
        await self.ready(name)

    async def restart_frontend(self, env: Mapping[str, str]) -> None:
        """`restart` of the process `frontend`."""
        await self.restart("frontend", env)

    def status(self) -> list[ProcessStatus]:
        """Every process now, in the order of the specs."""
        return [process.status for process in self._processes.values()]

    async def stop(self) -> None:
        """Drain stage after stage, lowest first, and wait until nothing runs. Twice does no harm.

        Cancelled meanwhile, it kills what is left and returns then.
        """
        stages = sorted({process.spec.stage for process in self._processes.values()})
        try:
            for stage in stages:
                await asyncio.gather(
                    *(p.stop() for p in self._processes.values() if p.spec.stage == stage)
                )
            await asyncio.gather(*self._keepers, return_exceptions=True)
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)

    def _find(self, name: str) -> ManagedProcess:
        try:
            return self._processes[name]
        except KeyError:
            known = ", ".join(self._processes)
            raise InvalidRequest(f"no process {name!r}; there are {known}") from None

    async def _watched(self, waiting: Coroutine[None, None, None]) -> None:
        """Await, but raise what ends a keeper meanwhile: what is awaited would never come."""
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({task, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()
                    raise Unavailable(f"{keeper.get_name()}: the supervisor was stopped")
            task.result()
        finally:
            task.cancel()
