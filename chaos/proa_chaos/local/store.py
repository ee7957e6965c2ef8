"""`proa store up` on this machine: a target for each shard, and for each process of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proa.api.v1.store_pb2 import StoreReport
from proa.errors import Unavailable
from proa.local.run_file import RunningProcess, read_run
from proa.local.store import COORDINATOR, agent_name, server_name
from proa.rpc import Channels
from proa_chaos.inband import InBand
from proa_chaos.local.faults import LocalFaults
from proa_chaos.plan import Hit
from proa_chaos.selection import COORDINATOR_ROLE, ROLE, SHARD_ROLE, Target

MESSAGE_BYTES_MAX = 16 << 20
AGENT_ROLE, SERVER_ROLE = "store-agent", "store-server"
COMMAND = "proa store up --faults"
_READY = {"up", "ready"}


class LocalStoreBackend:
    """The `proa store up` that runs in `run_dir`. `faults_until`: told how long faults may act, in
    seconds since boot. Errors: Unavailable when no store runs there."""

    name = "local"

    def __init__(
        self,
        run_dir: Path,
        *,
        prefix: str,
        seed: int,
        faults_until: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        run = read_run(run_dir, COMMAND)
        if COORDINATOR not in {process.name for process in run.processes}:
            raise Unavailable(f"{run_dir}: no store runs here; start one with `{COMMAND}`")
        self.address = run.address
        self._channels = Channels(message_bytes_max=MESSAGE_BYTES_MAX)
        self._faults = LocalFaults(
            run_dir, InBand(self._channels, prefix, seed), self._processes, _names, faults_until
        )

    async def targets(self, report: StoreReport) -> list[Target]:
        processes, found = self._processes(), []
        for one in report.shards:
            agent = processes[agent_name(one.shard)]
            found += [
                _target(shard_name(one.shard), SHARD_ROLE, one.domain, agent.address),
                _target(agent.name, AGENT_ROLE, one.domain, agent.address),
                _target(server_name(one.shard), SERVER_ROLE, one.domain),
            ]
        return [*found, _target(COORDINATOR, COORDINATOR_ROLE, COORDINATOR, self.address)]

    async def waiting_for(self) -> list[str]:
        return [
            f"{p.name} is {p.state}" for p in self._processes().values() if p.state not in _READY
        ]

    async def prepare(self, hits: Sequence[Hit]) -> None:
        await self._faults.prepare(hits)

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        await self._faults.inject(hit, ttl_s)

    async def end(self, hit: Hit) -> None:
        await self._faults.end(hit)

    async def close(self) -> None:
        self._faults.let_go()
        await self._channels.close()

    def _processes(self) -> Mapping[str, RunningProcess]:
        return {process.name: process for process in read_run(self._run_dir, COMMAND).processes}


def shard_name(shard: int) -> str:
    """The target that is a whole shard: agent and server."""
    return f"{SHARD_ROLE}-{shard}"


def _names(hit: Hit) -> list[str]:
    """The processes that a hit is about."""
    if hit.target.role != SHARD_ROLE:
        return [hit.target.name]
    shard = int(hit.target.name.removeprefix(shard_name(0)[:-1]))
    names = {"agent": agent_name(shard), "server": server_name(shard)}
    what = hit.fault.parameters.what
    return [names[what]] if what in names else list(names.values())


def _target(name: str, role: str, domain: str, address: str = "") -> Target:
    labels = {ROLE: role, "app.kubernetes.io/component": role}
    return Target(name, domain, address, labels=labels)
