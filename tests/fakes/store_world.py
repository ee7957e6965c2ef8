"""A seeded world around the store's protocol, and an oracle that judges every write and answer.

The network loses, doubles, delays and reorders; processes die at every step between W1 and W4 and
come back with their disk, with an old copy of it, with none, or beside their own ghost; the
coordinator dies too. All rows are real bytes. `Books` holds the history.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from fakes.store_books import Books, Violation
from fakes.store_client import Client
from fakes.store_disk import Disk
from fakes.store_faults import CONFIG, Faults, Mix
from fakes.store_process import Process
from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol import storage as st
from proa.store.protocol.actions import COORDINATOR
from proa.store.protocol.agent import Agent
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.coordinator import Coordinator
from proa.store.protocol.layout import Block, Extent, Layout

START_S, QUIET_S = 0.016, 4.0
NEVER_LOST = ms.Heartbeat  # a pause or a ghost is how a shard is missed


def update(block: Block, rows: np.ndarray, old: np.ndarray, payload: np.ndarray) -> np.ndarray:
    """An optimiser for which order matters, and twice is not once, and rows are not alike."""
    new = old * np.uint8(3) + (rows + block.position)[:, None].astype(np.uint8)
    new[:, : payload.shape[1]] += payload
    return new


class World(Faults):
    """`run()` plays the schedule of `seed` to the end and raises Violation at the first broken
    promise."""

    def __init__(
        self,
        seed: int,
        *,
        mix: Mix | None = None,
        agent_class: type[Agent] = Agent,
        k: int | None = None,
        r: int | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.mix = mix or Mix()
        self.agent_class = agent_class
        drawn_k, drawn_r = rng.choice((2, 2, 4)), rng.choice((1, 2))
        k, r = k or drawn_k, r or drawn_r
        stripes = rng.choice((1, 1, 1, 2))
        shards = k + r + rng.choice((0, 0, 0, 1))
        self.layout = Layout.uniform(k=k, r=r, shards=shards, stripes=stripes, rows=3, width=4)
        self.settled = stripes
        self.config = replace(
            CONFIG,
            open_blocks=self.mix.open_blocks,
            sweep_rows_per_s_max=self.mix.sweep_rows_per_s_max,
            workers_kept=self.mix.workers_kept,
            worker_silent_s=self.mix.worker_silent_s,
        )
        self.update = update
        self.books = Books(self.layout, update)
        self.now = 0.0
        self.tick_s = 0.025
        self.count: Counter[str] = Counter()
        self.read_to_end: dict[Block, bool] = {}
        self.waited_s = 0.0  # for an acknowledgement, the longest
        self.quiet = False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._nonce = 0
        self.disks: dict[str, Disk] = {}
        self.persisted: ClusterMap | None = None
        self.coordinator: Coordinator | None = Coordinator(shards, CONFIG, 0.0, None, stripes)
        self.data_blocks = [Block(s, p) for s in range(stripes) for p in range(k)]
        self.parity_blocks = [Block(s, k + j) for s in range(stripes) for j in range(r)]
        self.processes = [Process(self, s, self.new_disk()) for s in range(shards)]
        self.running = {process.disk.name: process for process in self.processes}
        self.copies: dict[int, Disk] = {}
        self.starting: set[int] = set()
        self.rotten: set[tuple[int, Block, int]] = set()
        self.clients = [Client(self, worker) for worker in range(self.mix.clients)]
        self.trigger: tuple[str, int, str] | None = None
        self._plan()

    # --- time and chance

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._sequence = number = self._sequence + 1
        heapq.heappush(self._heap, (time, number, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self._sequence = number = self._sequence + 1
        heapq.heappush(self._heap, (self.now + delay, number, call, args))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def disk_s(self) -> float:
        return 0.0002 + 0.001 * self.rng.random()

    def nonce(self) -> int:
        self._nonce += 1
        return self._nonce

    def new_disk(self, old: Disk | None = None) -> Disk:
        name = f"d{len(self.disks)}"
        self.disks[name] = disk = self.make_disk(name) if old is None else old.copy(name)
        disk.layout = self.layout
        return disk

    def make_disk(self, name: str) -> Disk:
        return Disk(name, self.layout)

    def _plan(self) -> None:
        rng, mix = self.rng, self.mix
        for process in self.processes:
            self.after(rng.random() * 0.002, process.tick)
        for client in self.clients:
            self.after(0.01 + 0.01 * rng.random(), client.tick)
        self.after(self.tick_s, self._coordinator_tick)
        start = START_S
        for _ in range(mix.pushes):
            client = rng.choice(self.clients)
            self.at(start + mix.busy_s * rng.random(), client.push)
        for _ in range(mix.reads):
            self.at(start + mix.busy_s * rng.random(), rng.choice(self.clients).read)
        for _ in range(mix.strikes):
            self.at(start + mix.busy_s * rng.random(), self.strike, rng.choice(mix.faults))
        self.at(start + mix.busy_s * rng.random(), self._copy_disks)
        if mix.tables and self.chance(mix.tables):
            self.at(start + mix.busy_s * rng.random() / 2, self._add_table)
        if mix.steps:
            kind = rng.choice(mix.step_faults)
            self.trigger = rng.choice(mix.steps), rng.choice(mix.countdown), kind
        if mix.beyond:
            self.at(start + mix.busy_s * (0.3 + 0.6 * rng.random()), self._strike_too_many)

    # --- the network

    def send(self, source: Any, to: Hashable, message: ms.Message) -> None:
        mix, rng = self.mix, self.rng
        reliable = self.quiet or self.now < START_S or isinstance(message, NEVER_LOST)
        if not reliable and rng.random() < mix.lossy:
            return
        if not reliable and isinstance(message, ms.Delta) and rng.random() < mix.deltas_lost:
            return
        if not reliable and isinstance(message, ms.Snapshot) and rng.random() < mix.snapshots_lost:
            return
        if isinstance(to, int):
            to = self.processes[to]
        elif isinstance(to, str) and to != COORDINATOR:
            to = self.running.get(to)
            if to is None:
                return
        delay = 0.001 if isinstance(message, NEVER_LOST) else self._delay()
        self.after(delay, self._deliver, to, source, message)
        if not reliable and rng.random() < mix.doubled:
            self.after(self._delay(), self._deliver, to, source, message)

    def _delay(self) -> float:
        delay = 0.0002 + 0.002 * self.rng.random()
        if not self.quiet and self.now > START_S and self.rng.random() < self.mix.slow:
            delay += self.rng.expovariate(1 / 0.012)
        return delay

    def _deliver(self, to: Any, source: Any, message: ms.Message) -> None:
        event = ac.Received(source, message)
        if to != COORDINATOR:
            to.handle(event)
        elif self.coordinator is not None:
            self._coordinate(event)

    def _coordinate(self, event: ac.Event) -> None:
        assert self.coordinator is not None
        self._coordinate_all(self.coordinator.handle(event, self.now))

    def _coordinate_all(self, actions: list[ac.Action]) -> None:
        for action in actions:
            match action:
                case ac.Persist(told):
                    self.persisted = told
                    if told.settled > self.settled:
                        self._settle(told.settled)
                case ac.Send(to, message):
                    if not getattr(to, "cut_off", False):
                        self.send(self, to, message)

    def _add_table(self) -> None:
        """One more stripe or two, of another shape; pushed to as soon as it is settled."""
        old = self.layout
        extent = Extent(old.stripes, self.rng.choice((1, 2)), rows=2, width=6, payload=3)
        self.layout = Layout(old.k, old.r, old.shards, (*old.extents, extent))
        self.books.extend(self.layout)
        for disk in self.disks.values():
            disk.layout = self.layout
        self.count["tables"] += 1
        if self.coordinator is not None:
            self._coordinate_all(self.coordinator.extend(self.layout.stripes))

    def _settle(self, stripes: int) -> None:
        first, self.settled = self.settled, stripes
        self.data_blocks += [
            Block(s, p) for s in range(first, stripes) for p in range(self.layout.k)
        ]
        self.count["settled"] += 1

    def _coordinator_tick(self) -> None:
        if self.coordinator is not None:
            self._coordinate(ac.Ticked())
        self.after(self.tick_s, self._coordinator_tick)

    def read(
        self, done: Callable[[st.View | None], None], disk: str, block: Block, rows: np.ndarray
    ) -> None:
        """A connection names the disk that it belongs to: another one does not answer."""
        if not self.quiet and self.rng.random() < self.mix.lossy / 3:
            self.after(0.02, done, None)
        else:
            self.after(self._delay(), self._read_at, done, disk, block, rows)

    def _read_at(
        self, done: Callable[[st.View | None], None], disk: str, block: Block, rows: np.ndarray
    ) -> None:
        found = self.disks.get(disk)
        self.after(self._delay(), done, None if found is None else found.view(block, rows))

    # --- what the processes report

    def check_parity(self, disk: Disk, block: Block, meta: st.StripeMeta) -> None:
        content, missing = disk.fetch(block, np.arange(self.layout.extent_of(block.stripe).rows))
        if not missing:
            self.books.parity_wrote(block, meta, content)

    def check_lost(self, lost: tuple[tuple[Block, int], ...]) -> None:
        self.count["data lost"] += 1
        if not self.mix.beyond:
            raise Violation(f"{lost} given up with no more than {self.layout.r} losses")

    # --- the run

    def run(self) -> World:
        end = START_S + self.mix.busy_s
        self._play(lambda: self.now > end)
        self.quiet = True
        self._scrub()
        self._play(self._is_settled)
        self._audit()
        return self

    def _scrub(self) -> None:
        for shard, block, row in sorted(self.rotten):
            if self.is_bad(shard, block, row):
                self.processes[shard].handle(ac.RowsBad(block, (row,)))
                self.after(0.3, self._scrub)

    def _play(self, until: Callable[[], bool]) -> None:
        heap, pop = self._heap, heapq.heappop
        check_at = self.now
        while heap:
            if self.now >= check_at:
                if until():
                    return
                if self.now > QUIET_S:
                    raise Violation(f"stuck: {self._unsettled()}")
                check_at = self.now + self.tick_s / 2
            self.now, _, call, args = pop(heap)
            call(*args)

    def _unsettled(self) -> list[str]:
        pushes = [f"push {c.worker, s}" for c in self.clients if c.alive for s in c.open]
        # After too many losses, parity waits for rows that nobody has.
        out = self._is_out if self.mix.beyond else self.impaired
        unsettled = ["tables"] * (self.settled < self.layout.stripes and not self.mix.beyond)
        return pushes + [f"shard {s}" for s in range(self.layout.shards) if out(s)] + unsettled

    def _is_settled(self) -> bool:
        return not self._unsettled() and not any(p.is_writing for p in self.processes)

    def _audit(self) -> None:
        """Every block has the bytes and every push that it must have; and can be read."""
        for block in self.data_blocks:
            rows = np.arange(self.layout.extent_of(block.stripe).rows)
            process = self.processes[self.layout.shard_of(*block)]
            owned = process.agent.owner.state.blocks[block]
            view = process.disk.view(block, rows)
            if self.books.lost[block]:
                continue
            found = self.books.find(block, owned.epoch, owned.version)
            if view is None or view.missing or not np.array_equal(view.data, found.content):
                raise Violation(f"{block}: its disk has other bytes than its history")
            acked = self.books.acked[block]
            self.books.check_acked(block, owned.epoch, owned.version, acked, "the end")
        for client in self.clients[:1]:
            self._read_all(client)

    def _read_all(self, client: Client) -> None:
        client.alive = True
        client.map, client.map_asked = self.persisted, self.now
        self.read_to_end.clear()
        blocks = list(self.data_blocks)  # tables may be settled meanwhile
        for block in blocks:
            client.read(block)
        end = self.now + 1.0
        self._play(lambda: len(self.read_to_end) == len(blocks) or self.now > end)
        if not all(self.read_to_end.get(block) for block in blocks):
            raise Violation("some rows cannot be read at the end")
