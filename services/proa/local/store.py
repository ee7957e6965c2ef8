"""`proa store up`: a coordinator and n shards on loopback, each with a Valkey of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proa.api.v1 import store_pb2_grpc
from proa.errors import SettingsError
from proa.local.ports import HOST, Ports
from proa.local.priority import Priority
from proa.local.probe import Probe
from proa.local.processes import Limits, ProcessSpec, Sink
from proa.local.run_file import RunFile
from proa.local.supervisor import Supervisor, discard
from proa.rpc import Channels, peer_errors
from proa.runtime.tls import open_tls
from proa.store.post import ROLE
from proa.store.valkey import command, socket_of

COORDINATOR = "coordinator"
STATE = "store.json"
SHARDS_MAX = 64
_MESSAGE_BYTES_MAX = 16 << 20
STAGE_AGENTS, STAGE_COORDINATOR, STAGE_SERVERS = range(3)


@dataclass(frozen=True)
class StoreOptions:
    """What `proa store up` was asked for. Port 0: any free one. shards 0: k + r + 1.

    faults: the agents take faults of experiments. agent_env: more variables for the agents of some
    shards (tests).
    """

    run_dir: Path = Path(".proa-store")
    port: int = 8021
    admin_port: int = 9091
    k: int = 2
    r: int = 1
    shards: int = 0
    memory_bytes_max: int = 0
    faults: bool = False
    agent_env: Mapping[int, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreTopology:
    """The processes of one store, and the addresses to reach it."""

    address: str
    admin_address: str
    k: int
    r: int
    processes: tuple[ProcessSpec, ...]
    directories: tuple[Path, ...]
    """Of the shards' servers: their sockets."""
    models: tuple[()] = ()


@dataclass(frozen=True)
class RunningStore:
    """Everything that runs."""

    topology: StoreTopology
    supervisor: Supervisor


def agent_name(shard: int) -> str:
    """The process of a shard's agent."""
    return f"agent-{shard}"


def server_name(shard: int) -> str:
    """The process of a shard's Valkey."""
    return f"valkey-{shard}"


def directory_name(shard: int) -> str:
    """Short: the path of a socket must be."""
    return f"s{shard}"


def plan_store(options: StoreOptions, ports: Ports) -> StoreTopology:
    """Lay everything out. Raises SettingsError, naming the flag."""
    count = options.shards or options.k + options.r + 1
    if not options.k + options.r <= count <= SHARDS_MAX:
        raise SettingsError(
            f"--shards {count}: stripes of k + r = {options.k + options.r} blocks need as many"
            f" shards; at most {SHARDS_MAX}"
        )
    port = ports.claim(options.port, "--port")
    admin_port = ports.claim(options.admin_port, "--admin-port")
    run_dir = options.run_dir.resolve()
    servers = [_server(shard, options, run_dir) for shard in range(count)]
    agents = [_agent(shard, options, run_dir, port, ports) for shard in range(count)]
    shards = ",".join(
        f"{HOST}:{agent.port}|{socket_of(run_dir / directory_name(shard))}@{agent.name}"
        for shard, agent in enumerate(agents)
    )
    coordinator = ProcessSpec(
        name=COORDINATOR,
        argv=(sys.executable, "-m", "proa.store", "coordinator"),
        env={
            "PROA_STORE_SHARDS": shards,
            "PROA_STORE_STATE": str(run_dir / STATE),
            "PROA_STORE_K": str(options.k),
            "PROA_STORE_R": str(options.r),
            "PROA_STORE_HOST": HOST,
            "PROA_STORE_PORT": str(port),
            "PROA_STORE_ADMIN_PORT": str(admin_port),
        },
        admin_port=admin_port,
        port=port,
        stage=STAGE_COORDINATOR,
    )
    return StoreTopology(
        address=f"{HOST}:{port}",
        admin_address=f"{HOST}:{admin_port}",
        k=options.k,
        r=options.r,
        processes=(coordinator, *servers, *agents),
        directories=tuple(run_dir / directory_name(shard) for shard in range(count)),
    )


def _server(shard: int, options: StoreOptions, run_dir: Path) -> ProcessSpec:
    directory = run_dir / directory_name(shard)
    path = socket_of(directory)
    return ProcessSpec(
        name=server_name(shard),
        argv=command(directory, memory_bytes_max=options.memory_bytes_max),
        env={},
        admin_port=0,
        stage=STAGE_SERVERS,
        clean=lambda: path.unlink(missing_ok=True),
        probe=lambda timeout_s: ping(path, timeout_s),
    )


async def ping(path: Path, timeout_s: float) -> Probe:
    """Whether the server on a unix socket answers."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError) as exc:
        return Probe(0, f"{path}: {exc or 'no answer'}")
    if answer.startswith(b"+PONG"):
        return Probe(200, "")
    return Probe(503, answer.decode(errors="replace").strip())


def _agent(
    shard: int, options: StoreOptions, run_dir: Path, coordinator: int, ports: Ports
) -> ProcessSpec:
    port, admin_port = ports.free(), ports.free()
    return ProcessSpec(
        name=agent_name(shard),
        argv=(sys.executable, "-m", "proa.store", "agent"),
        env={
            **({"PROA_STORE_FAULTS": "true"} if options.faults else {}),
            **options.agent_env.get(shard, {}),
            "PROA_STORE_SHARD": str(shard),
            "PROA_STORE_COORDINATOR": f"{HOST}:{coordinator}",
            "PROA_STORE_SERVER": str(socket_of(run_dir / directory_name(shard))),
            "PROA_STORE_HOST": HOST,
            "PROA_STORE_PORT": str(port),
            "PROA_STORE_ADMIN_PORT": str(admin_port),
        },
        admin_port=admin_port,
        port=port,
        stage=STAGE_AGENTS,
    )


async def asked(
    address: str, call: Callable[[Any], Any], tls_dir: Path | None = None
) -> AsyncGenerator[Any, None]:
    """The answers of the coordinator at `address` to a streaming call of its stub.

    tls_dir: tls.crt, tls.key, ca.crt of our own. Errors: ProaError, naming the coordinator."""
    tls = open_tls(tls_dir, "tls_dir")
    channels = Channels(message_bytes_max=_MESSAGE_BYTES_MAX, tls=tls)
    try:
        async with peer_errors(f"coordinator {address}"):
            stub = store_pb2_grpc.EmbeddingStoreStub(channels(address, ROLE))  # type: ignore[no-untyped-call]
            async for message in call(stub):
                yield message
    finally:
        await channels.close()


@contextlib.asynccontextmanager
async def embedded_store(
    options: StoreOptions, *, sink: Sink = discard, limits: Limits | None = None
) -> AsyncIterator[RunningStore]:
    """Start a new, empty store; on leaving, end it: its rows are gone then.

    Not yet ready on entry: `await running.supervisor.ready()`. Raises SettingsError (a taken port,
    a run directory in use) before anything is started.
    """
    run_dir = options.run_dir.resolve()
    run_file = RunFile(run_dir)
    run_file.claim()
    topology = plan_store(options, Ports())
    _sweep(topology, run_dir)
    for directory in topology.directories:
        directory.mkdir(parents=True)

    def write() -> None:
        run_file.write(topology, supervisor.status())

    # A shard that comes back is what all training waits for: no lower priority than others.
    priority = Priority(nice=False, autogroup=False)
    supervisor = Supervisor(
        topology.processes, sink=sink, limits=limits, priority=priority, on_change=write
    )
    try:
        write()
        async with supervisor:
            yield RunningStore(topology, supervisor)
    finally:
        run_file.remove()
        _sweep(topology, run_dir)


def _sweep(topology: StoreTopology, run_dir: Path) -> None:
    """Remove what a store keeps in files, also that of a supervisor that was killed."""
    for directory in topology.directories:
        shutil.rmtree(directory, ignore_errors=True)
    for suffix in (".json", ".lock", ".new"):
        (run_dir / STATE).with_suffix(suffix).unlink(missing_ok=True)
