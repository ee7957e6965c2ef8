"""A store one of whose shards can be taken over while its agent lives: as when a pod is replaced
on another node, and the old one was only cut off.

Everybody reaches agents through a switch each; the shard's is turned to the successor. The
successor has a server of its own (`fresh`), at the path of the old one, or the old one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from fakes.real_store import QUICK, Watch, until, until_sync
from proa.local.ports import HOST, Ports
from proa.local.priority import Priority
from proa.local.processes import ProcessSpec
from proa.local.store import (
    COORDINATOR,
    RunningStore,
    StoreOptions,
    agent_name,
    plan_store,
    server_name,
)
from proa.local.supervisor import Supervisor

# Nobody is killed for being frozen: that is what is looked at.
PATIENT = replace(QUICK, probe_failures_max=10_000)
NEW = "-new"


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, with all its threads."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "T"


class Switch:
    """Listens at `port`, hands connections on to another port. `bytes_in`: handed on."""

    def __init__(self, to: int) -> None:
        self.to, self.port, self.bytes_in = to, 0, 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Switch:
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.turn(self.to)

    async def turn(self, to: int) -> None:
        """From now on to there; what is connected is cut."""
        self.to = to
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                back, on = await asyncio.open_connection(HOST, self.to)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pipe(reader, on, count=True))
                        group.create_task(self._pipe(back, writer, count=False))
                finally:
                    on.close()
            except* (OSError, EOFError):
                pass
            finally:
                writer.close()
                self._tasks.discard(task)

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            self.bytes_in += len(data) * count
            await writer.drain()
        raise EOFError


class Succession(Watch):
    """A Watch of a store whose `shard` has a successor waiting."""

    def __init__(
        self, running: RunningStore, lines: list[str], shard: int, switches: list[Switch]
    ) -> None:
        super().__init__(running, lines)
        self.shard, self.switches = shard, switches
        self.old, self.new = agent_name(shard), agent_name(shard) + NEW
        self.pid_old = 0

    def address_of(self, name: str) -> str:
        """Of a process itself, whatever its switch says."""
        return f"{HOST}:{self._spec(name).port}"

    def _spec(self, name: str) -> ProcessSpec:
        return next(spec for spec in self.running.topology.processes if spec.name == name)

    async def armed(self, crash_at: str) -> None:
        """The shard's agent begins anew, and stops at this step."""
        await self.whole()
        await self.supervisor.restart(self.old, {"PROA_STORE_CRASH_AT": crash_at})
        await self.whole()
        pid = self.pid(self.old)
        assert pid is not None
        self.pid_old = pid

    async def old_stopped(self) -> None:
        await until_sync(lambda: is_stopped(self.pid_old))

    def go_on(self) -> None:
        """The old one, from where it was stopped."""
        self.supervisor.kill(self.old, signal.SIGCONT)

    async def taken_over(self, *, fresh: bool) -> None:
        """The successor has the shard. fresh: with a server of its own."""
        epoch = (await self.epochs())[self.shard]
        await self.switches[self.shard].turn(self._spec(self.new).port)
        if fresh:
            name = server_name(self.shard) + NEW
            self.supervisor.release(name)
            await self.supervisor.ready(name)
        self.supervisor.release(self.new)
        await self.epoch_after(self.shard, epoch)
        await until(self._is_open)

    async def _is_open(self) -> bool:
        return (await self.report()).shards[self.shard].state == "open"

    async def old_ended(self) -> None:
        """Nobody hears of the old one again."""
        self.supervisor.hold(self.old)
        self.supervisor.kill(self.old)
        await self.supervisor.down(self.old)


@contextlib.asynccontextmanager
async def succession(options: StoreOptions, shard: int) -> AsyncIterator[Succession]:
    """All are ready but the successor, which waits."""
    ports = Ports()
    topology = plan_store(options, ports)
    for directory in topology.directories:
        directory.mkdir(parents=True)
    agents = [next(s for s in topology.processes if s.name == agent_name(n)) for n in
              range(len(topology.directories))]  # fmt: skip
    lines: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        switches = [await stack.enter_async_context(Switch(spec.port)) for spec in agents]
        specs = [_through(spec, agents, switches) for spec in topology.processes]
        port, admin_port = ports.free(), ports.free()
        changed = {"PROA_STORE_PORT": str(port), "PROA_STORE_ADMIN_PORT": str(admin_port)}
        new = replace(
            agents[shard], name=agent_name(shard) + NEW, port=port, admin_port=admin_port,
            env={**agents[shard].env, **changed},
        )  # fmt: skip
        server = next(spec for spec in specs if spec.name == server_name(shard))
        # They share a path: who ends must not remove the other one's.
        specs[specs.index(server)] = server = replace(server, clean=None)
        specs += [new, replace(server, name=server.name + NEW)]
        topology = replace(topology, processes=tuple(specs))
        supervisor = Supervisor(
            specs,
            sink=lambda name, line: lines.append(f"{name} | {line}"),
            limits=PATIENT,
            priority=Priority(nice=False, autogroup=False),
        )
        waiting = (new.name, server.name + NEW)
        for name in waiting:
            supervisor.hold(name)
        watch = Succession(RunningStore(topology, supervisor), lines, shard, switches)
        async with supervisor:
            try:
                await supervisor.ready(*(s.name for s in specs if s.name not in waiting))
                yield watch
            finally:
                # One that is stopped ends by nothing but SIGKILL, after its grace.
                supervisor.kill_all()
                print("\n".join(lines[-150:]))
                await watch.close()


def _through(spec: ProcessSpec, agents: list[ProcessSpec], switches: list[Switch]) -> ProcessSpec:
    """The coordinator names the switches in place of the agents."""
    if spec.name != COORDINATOR:
        return spec
    text = spec.env["PROA_STORE_SHARDS"]
    for agent, switch in zip(agents, switches, strict=True):
        text = text.replace(f"{HOST}:{agent.port}|", f"{HOST}:{switch.port}|")
    return replace(spec, env={**spec.env, "PROA_STORE_SHARDS": text})
