"""A worker of the simulated world: pushes until it is answered, reads, and uses old maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.heard import FIRST_CLIENT
from proa.store.protocol.layout import Block
from proa.store.protocol.reading import Answer, RowRead
from proa.store.protocol.storage import View

if TYPE_CHECKING:
    from fakes.store_world import World


class Client:
    """`settled`: pushes that were acknowledged, `refused`: those for lost rows."""

    def __init__(self, world: World, worker: int) -> None:
        self.world, self.worker = world, FIRST_CLIENT + worker
        self.alive = True
        self.map: ClusterMap | None = None
        self.map_asked = -1.0
        self.step = 0
        self.open: dict[int, ms.Push] = {}
        self._pushed: dict[int, float] = {}

    def tick(self) -> None:
        world = self.world
        if not self.alive or (world.quiet and not self.open):
            return
        fresh_s = world.config.map_ttl_s * 0.7
        if self.map is None or (
            world.now - self.map_asked > fresh_s and world.chance(world.mix.refresh)
        ):
            self.ask()
        for push in list(self.open.values()):
            if world.chance(0.6):
                self._send(push)
        world.after(world.tick_s, self.tick)

    def ask(self) -> None:
        self.world.send(self, ac.COORDINATOR, ms.MapAsked(self.world.now))

    def push(self) -> None:
        """One step for some blocks of one shard."""
        world, rng = self.world, self.world.rng
        if not self.alive:
            return
        block = rng.choice(world.data_blocks)
        shard = world.layout.shard_of(*block)
        blocks = [
            b for b in world.data_blocks
            if world.layout.shard_of(*b) == shard and (b == block or rng.random() < 0.5)
        ]  # fmt: skip
        parts = []
        for one in blocks:
            extent = world.layout.extent_of(one.stripe)
            some = rng.randint(1, (1 << extent.rows) - 1)
            rows = [i for i in range(extent.rows) if some >> i & 1]
            size = len(rows) * extent.payload
            payload = np.frombuffer(rng.randbytes(size), np.uint8).reshape(len(rows), -1)
            parts.append(ms.Part(one, np.array(rows, np.intp), payload))
        push = ms.Push(self.worker, self.step, min(self.open, default=self.step), 0, tuple(parts))
        self.step += 1
        self.open[push.step] = push
        self._pushed[push.step] = world.now
        world.books.payloads[push.worker, push.step] = push
        self._send(push)

    def _send(self, push: ms.Push) -> None:
        if self.map is None:
            return
        shard = self.world.layout.shard_of(*push.parts[0].block)
        entry = self.map.shards[shard]
        again = ms.Push(push.worker, push.step, push.floor, entry.epoch, push.parts)
        self.world.send(self, entry.disk, again)

    def handle(self, event: ac.Event) -> None:
        if not self.alive:
            return
        assert isinstance(event, ac.Received)
        match event.message:
            case ms.MapTold(told, asked_s) if asked_s is not None and asked_s > self.map_asked:
                if self.map is None or told.version >= self.map.version:
                    self.map, self.map_asked = told, asked_s
            case ms.PushDone(_, step):
                if self.open.pop(step, None) is not None:
                    waited_s = self.world.now - self._pushed[step]
                    self.world.waited_s = max(self.world.waited_s, waited_s)
            case ms.PushRefused() as refused:
                self._refused(refused)

    def _refused(self, refused: ms.PushRefused) -> None:
        self.world.count[f"refused {refused.why.name}"] += 1
        match refused.why:
            case ms.Refusal.DATA_LOST:
                self.world.check_lost(refused.lost)
                self.open.pop(refused.step, None)
            case ms.Refusal.NOT_OWNER | ms.Refusal.STALE_MAP:
                self.ask()
            case ms.Refusal.INVALID:
                raise AssertionError(f"a good push was refused: {refused}")

    # --- reads

    def read(self, block: Block | None = None, tries: int = 3) -> None:
        """Read some rows of a block, or all of the one given, unless the map is too old."""
        world, rng = self.world, self.world.rng
        if not self.alive:
            return
        if self.map is None or world.now - self.map_asked > world.config.map_ttl_s:
            self._again(block, tries)
            return
        whole = block is not None
        block = block or rng.choice(world.data_blocks)
        count = world.layout.extent_of(block.stripe).rows
        some = (1 << count) - 1 if whole else rng.randint(1, (1 << count) - 1)
        rows = np.array([i for i in range(count) if some >> i & 1], np.intp)
        read = RowRead(world.layout, self.map, block, rows)
        self._go_on(read, block, set(world.books.acked[block]), tries, *read.start())

    def _go_on(
        self,
        read: RowRead,
        target: Block,
        acked: set[tuple[int, int]],
        tries: int,
        asked: list[Block],
        answer: Answer | None,
    ) -> None:
        world = self.world
        for block in asked:
            disk = read.map.shards[world.layout.shard_of(*block)].disk
            done = partial(self._read_done, read, block, acked, tries)
            world.read(done, disk, block, read.asked)
        if answer is None:
            return
        world.books.read(target, read.rows, answer, acked)
        if answer.lost:
            world.check_lost(tuple((target, row) for row in answer.lost))
        world.count["read"] += 1
        world.count["read degraded"] += any(piece.degraded for piece in answer.pieces)
        world.read_to_end[target] = world.read_to_end.get(target, False) or not answer.later
        if answer.later:
            self._again(target, tries)

    def _again(self, block: Block | None, tries: int) -> None:
        if tries:
            self.world.after(self.world.tick_s, self.read, block, tries - 1)

    def _read_done(
        self,
        read: RowRead,
        block: Block,
        acked: set[tuple[int, int]],
        tries: int,
        view: View | None,
    ) -> None:
        if self.alive:
            asked, answer = read.take(block, view)
            self._go_on(read, read.block, acked, tries, asked, answer)
