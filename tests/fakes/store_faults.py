"""What goes wrong in the simulated world of the store, and how much of it at a time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fakes.store_client import Client
from fakes.store_disk import Disk
from fakes.store_process import Process
from proa.store.protocol.actions import Action, Phase
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.coordinator import Coordinator
from proa.store.protocol.layout import Block, Layout

CONFIG = StoreConfig(
    resend_s=0.02,
    heartbeat_s=0.02,
    detect_s=0.07,
    map_ttl_s=0.05,
    sweep_rows=2,
    sweep_blocks=2,
    joins_max=2,
    decode_tries=3,
)
STEPS = ("W1", "W2", "W3", "W3 applied", "W4")


@dataclass(frozen=True)
class Mix:
    """What happens in a world. Shares are 0 to 1; `faults`: how often each kind is drawn."""

    lossy: float = 0.15
    doubled: float = 0.1
    slow: float = 0.15
    strikes: int = 3
    faults: tuple[str, ...] = (
        "agent", "agent", "wipe", "wipe", "wipe", "stale", "stale", "ghost", "ghost", "pause",
        "rot", "coordinator", "client",
    )  # fmt: skip
    busy_s: float = 0.09
    pushes: int = 8
    reads: int = 3
    clients: int = 2
    deltas_lost: float = 0.0  # beside those lost like all others
    snapshots_lost: float = 0.0  # the same
    sweep_rows_per_s_max: int = 0
    refresh: float = 0.7  # how eager clients are to replace an old map
    beyond: bool = False
    workers_kept: int = 16  # by each block
    worker_silent_s: float = 86400.0
    open_blocks: int = 1  # that an owner compares at a time: any number of parts, or one
    tables: float = 0.5  # the share of worlds in which tables are added
    # At the n-th time that some process comes to this step, n out of `countdown`, it is struck.
    steps: tuple[str, ...] = STEPS
    countdown: tuple[int, ...] = tuple(range(1, 9))
    step_faults: tuple[str, ...] = ("agent", "wipe", "wipe", "stale", "ghost")


class Faults:
    """The half of a World that strikes. Within the promise, never more than r shards are down,
    suspected, or not yet recovered at once, whatever happened to them."""

    rng: random.Random
    mix: Mix
    layout: Layout
    now: float
    quiet: bool
    count: Counter[str]
    processes: list[Process]
    running: dict[str, Process]
    disks: dict[str, Disk]
    copies: dict[int, Disk]
    clients: list[Client]
    rotten: set[tuple[int, Block, int]]
    starting: set[int]
    trigger: tuple[str, int, str] | None
    coordinator: Coordinator | None
    settled: int
    _coordinate_all: Callable[[list[Action]], None]
    persisted: ClusterMap | None
    after: Callable[..., None]
    chance: Callable[[float], bool]
    new_disk: Callable[..., Disk]

    def step(self, name: str, process: Process) -> None:
        """A process has come to a step between W1 and W4: it may die right here."""
        self.count[f"step {name}"] += 1
        if self.trigger is None or self.trigger[0] != name or self.quiet:
            return
        name, left, kind = self.trigger
        self.trigger = (name, left - 1, kind) if left > 1 else None
        if left == 1 and process.alive and self.processes[process.shard] is process:
            self.strike(kind, process.shard)

    # --- faults

    def impaired(self, shard: int) -> bool:
        """Whether losing this shard now would be no further loss, or it has not recovered yet."""
        process = self.processes[shard]
        return (
            self._is_out(shard)
            or self._is_late(shard)
            or not process.agent.parity.is_whole()
            or any(bad[0] == shard and self.is_bad(*bad) for bad in self.rotten)
        )

    def _is_out(self, shard: int) -> bool:
        """Whether it does not serve, or has rows still to decode."""
        process = self.processes[shard]
        agent, told = process.agent, (self.persisted or ClusterMap(0, {})).shards.get(shard)
        state = agent.owner.state
        return (
            shard in self.starting
            or process.paused is not None
            or told is None
            or not (agent.running and told.up and told.epoch == agent.epoch)
            or state.phase is not Phase.OPEN
            or any(owned.pending for owned in state.blocks.values())
        )

    def _is_late(self, shard: int) -> bool:
        """Whether its heartbeat is overdue: it may be declared down yet."""
        coordinator = self.coordinator
        overdue_s = 1.5 * CONFIG.heartbeat_s
        return coordinator is not None and self.now - coordinator._heard[shard] > overdue_s

    def is_bad(self, shard: int, block: Block, row: int) -> bool:
        """Whether a row that rotted is still bad, on its disk or on a copy of that."""
        return bool(self.processes[shard].disk.fetch(block, np.array([row]))[1])

    def strike(self, kind: str, shard: int | None = None) -> None:
        """A fault, unless it would be one loss too many."""
        if self.quiet:
            return
        if kind == "coordinator":
            self._strike_coordinator()
            return
        if kind == "client":
            self._strike_client()
            return
        bad = {s for s in range(self.layout.shards) if self.impaired(s)}
        if shard is None:
            shard = self.rng.randrange(self.layout.shards)
        if len(bad | {shard}) > self.layout.r or shard in self.starting:
            return
        self.count[f"fault {kind}"] += 1
        getattr(self, f"_strike_{kind}")(shard)

    def _strike_agent(self, shard: int) -> None:
        """The process dies, its disk lives."""
        process = self.processes[shard]
        process.die()
        self._start(shard, process.disk)

    def _strike_wipe(self, shard: int) -> None:
        """Process and disk die."""
        self._kill(shard)
        self._start(shard, self.new_disk())

    def _strike_stale(self, shard: int) -> None:
        """Process and disk die; the new disk is an older copy, or a copy of the last moment."""
        process = self.processes[shard]
        old = self.copies.get(shard) if self.chance(0.7) else None
        disk = self.new_disk(old or process.disk)
        self._kill(shard)
        self._start(shard, disk)

    def _strike_ghost(self, shard: int) -> None:
        """The coordinator no longer sees the owner, which goes on, and another one is started."""
        ghost = self.processes[shard]
        ghost.cut_off = True
        old = self.copies.get(shard) if self.chance(0.3) else None
        if self.chance(0.5):
            ghost.paused = ghost.paused or []
            self.after(0.15 * self.rng.random(), ghost.resume)
        self._start(shard, self.new_disk(old))

    def _strike_pause(self, shard: int) -> None:
        process = self.processes[shard]
        if process.paused is None:
            process.paused = []
        self.after(0.12 * self.rng.random(), process.resume)

    def _strike_rot(self, shard: int) -> None:
        disk = self.processes[shard].disk
        found = [(b, row) for b, shelf in disk.shelves.items() for row in shelf.records]
        if found:
            block, row = self.rng.choice(sorted(found))
            disk.flip(block, row)
            self.rotten.add((shard, block, row))

    def _strike_coordinator(self) -> None:
        if self.coordinator is None:
            return
        self.coordinator = None
        self.count["fault coordinator"] += 1
        self.after(0.05 * self.rng.random(), self._start_coordinator)

    def _start_coordinator(self) -> None:
        stripes = self.settled
        self.coordinator = Coordinator(
            self.layout.shards, CONFIG, self.now, self.persisted, stripes
        )
        self._coordinate_all(self.coordinator.extend(self.layout.stripes))

    def _strike_client(self) -> None:
        """A worker dies in the middle of its pushes; another one takes its place."""
        self.count["fault client"] += 1
        index = self.rng.randrange(len(self.clients))
        self.clients[index].alive = False
        self.clients.append(Client(self, len(self.clients)))
        self.clients[-1].tick()

    def _strike_too_many(self) -> None:
        """One loss more than the parity covers, all in blocks of the same stripe."""
        positions = self.rng.sample(range(self.layout.k + self.layout.r), self.layout.r + 1)
        for position in positions:
            shard = self.layout.shard_of(0, position)
            if shard not in self.starting:
                self._strike_wipe(shard)

    def _copy_disks(self) -> None:
        for process in self.processes:
            if process.alive:
                self.copies[process.shard] = process.disk.copy("copy")

    def _kill(self, shard: int) -> None:
        process = self.processes[shard]
        process.die()
        self.disks[process.disk.name] = Disk("dead", self.layout)

    def _start(self, shard: int, disk: Disk) -> None:
        self.starting.add(shard)
        delay = self.rng.choice((0.005, 0.02, 0.1)) * self.rng.random()
        self.after(delay, self._started, shard, disk)

    def _started(self, shard: int, disk: Disk) -> None:
        self.starting.discard(shard)
        self.processes[shard] = process = Process(self, shard, disk)
        self.running[disk.name] = process
        process.tick()
