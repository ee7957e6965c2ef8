"""A shard's agent as the simulated world runs it: one process, one disk, and what lies between."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fakes.store_disk import Disk, RowBad
from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol import storage as st
from proa.store.protocol.agent import Agent
from proa.store.protocol.layout import Block

if TYPE_CHECKING:
    from fakes.store_world import World


class Process:
    """Runs an Agent. The disk performs what it is given in order, each after a little while; what
    it has not performed when the process dies never happens."""

    def __init__(self, world: World, shard: int, disk: Disk) -> None:
        self.world, self.shard, self.disk = world, shard, disk
        self.alive = True
        self.paused: list[tuple[Agent, ac.Event]] | None = None
        self.cut_off = False
        self._work: deque[ac.Commit | ac.Fetch] = deque()
        self._boot()

    def _boot(self) -> None:
        world = self.world
        self.agent: Agent = world.agent_class(
            world.layout, self.shard, world.config, self.disk.image(), world.update, world.nonce()
        )
        self.handle(ac.Ticked())

    @property
    def is_writing(self) -> bool:
        return bool(self._work)

    def die(self) -> None:
        self.alive = False
        self._work.clear()

    def tick(self) -> None:
        if self.alive:
            self.handle(ac.Ticked())
            self.world.after(self.world.tick_s, self.tick)

    def handle(self, event: ac.Event) -> None:
        if not self.alive:
            return
        if self.paused is not None:
            if not isinstance(event, ac.Ticked):
                self.paused.append((self.agent, event))
            return
        for action in self.agent.handle(event, self.world.now):
            if not self.alive:
                return
            self._perform(action)

    def resume(self) -> None:
        events, self.paused = self.paused or [], None
        for agent, event in events:
            if self.agent is agent:
                self.handle(event)

    def _perform(self, action: ac.Action) -> None:
        world = self.world
        match action:
            case ac.Send(to, message):
                if isinstance(message, ms.PushDone):
                    world.books.acknowledged(message)
                    world.step("W4", self)
                elif isinstance(message, ms.Delta):
                    world.step("W3", self)
                if not (self.cut_off and to == ac.COORDINATOR):
                    world.send(self, to, message)
            case ac.Commit() | ac.Fetch():
                self._work.append(action)
                if len(self._work) == 1:
                    world.after(world.disk_s(), self._work_on, self.agent)
            case ac.Read(ticket, _, disk, block, rows):
                world.read(partial(self._read_done, self.agent, ticket), disk, block, rows)
            case ac.Restart(why):
                world.count[f"restart: {why}"] += 1
                world.after(world.disk_s(), self._reboot, self.agent)
            case ac.Note(kind):
                world.count[kind] += 1

    def _reboot(self, old: Agent) -> None:
        """The process starts again, when the disk has done what it was given."""
        if self.alive and self.agent is old:
            if self._work:
                self.world.after(self.world.disk_s(), self._reboot, old)
            else:
                self._boot()

    def _read_done(self, agent: Agent, ticket: int, view: st.View | None) -> None:
        if self.agent is agent:
            self.handle(ac.ReadDone(ticket, view))

    # --- the disk

    def _work_on(self, agent: Agent) -> None:
        if not self.alive or not self._work:
            return
        action = self._work.popleft()
        event: ac.Event
        if isinstance(action, ac.Fetch):
            found = {block: self._fetch(block, rows) for block, rows in action.rows.items()}
            event = ac.Fetched(action.ticket, found)
        else:
            event = self._commit(action)
        if self._work:
            self.world.after(self.world.disk_s(), self._work_on, agent)
        if self.alive and self.agent is agent:
            self.handle(event)

    def _fetch(self, block: Block, rows: np.ndarray) -> tuple[np.ndarray, frozenset[int]]:
        self.world.step("W1", self)
        return self.disk.shelf(block).read(rows, self.world.layout.width)

    def _commit(self, action: ac.Commit) -> ac.Event:
        """All of it, then nothing or a crash: a step is over when the disk has it."""
        steps, parity = set(), {}
        for write in action.writes:
            try:
                self._write(write, steps, parity)
            except RowBad:
                return ac.CommitFailed(action.ticket, (write.stripe,))
        for block, meta in parity.items():
            self.world.check_parity(self.disk, block, meta)
        for step in sorted(steps):
            self.world.step(step, self)
        return ac.Committed(action.ticket)

    def _write(self, write: st.Write, steps: set[str], parity: dict[Block, st.StripeMeta]) -> None:
        disk = self.disk
        match write:
            case st.BlockWrite(block):
                before = disk.metas.get(block)
                disk.block_write(write)
                self.world.books.owner_wrote(write, before)
                if write.log.append is not None:
                    steps.add("W2")
            case st.StripeWrite(stripe):
                block = Block(stripe, (self.shard - stripe) % self.world.layout.shards)
                disk.stripe_write(block, write)
                parity[block] = write.meta
                if write.undo.append is not None:
                    steps.add("W3 applied")
            case st.FenceWrite(source, epoch):
                disk.fences[source] = max(epoch, disk.fences.get(source, 0))
            case st.StampWrite(epoch):
                disk.stamp = epoch
