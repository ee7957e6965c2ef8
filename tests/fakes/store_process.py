"""A shard's agent as the simulated world runs it: one process, one disk, and what lies between."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fakes.store_disk import Disk
from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol import storage as st
from proa.store.protocol.agent import Agent
from proa.store.protocol.layout import Block
from proa.store.protocol.log import FORGET

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
            world.layout,
            self.shard,
            world.config,
            self.disk.image(self.shard),
            world.update,
            world.nonce(),
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
                self._send(to, message)
            case ac.Commit() | ac.Fetch():
                self._give(action)
            case ac.Read(ticket, _, disk, block, rows):
                world.read(partial(self._read_done, self.agent, ticket), disk, block, rows)
            case ac.Grow():
                world.count["grow"] += 1
                world.after(world.disk_s(), self._extend, self.agent)
            case ac.Restart(why):
                world.count[f"restart: {why}"] += 1
                world.after(world.disk_s(), self._reboot, self.agent)
            case ac.Note(kind):
                world.count[kind] += 1

    def _send(self, to: Hashable, message: ms.Message) -> None:
        if isinstance(message, ms.PushDone):
            self.world.books.acknowledged(message)
            self.world.step("W4", self)
        elif isinstance(message, ms.Delta):
            self.world.step("W3", self)
        if not (self.cut_off and to == ac.COORDINATOR):
            self.world.send(self, to, message)

    def _give(self, action: ac.Commit | ac.Fetch) -> None:
        self._work.append(action)
        if len(self._work) == 1:
            self.world.after(self.world.disk_s(), self._work_on, self.agent)

    def _extend(self, agent: Agent) -> None:
        if self.agent is agent:
            self.handle(ac.Extended(self.world.layout))

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
        return self.disk.fetch(block, rows)

    def _commit(self, action: ac.Commit) -> ac.Event:
        """All of it, or nothing, then perhaps a crash: a step is over when the disk has it."""
        blocks = [w for w in action.writes if isinstance(w, st.BlockWrite)]
        before = [self.disk.metas.get(write.block) for write in blocks]
        bad = self.disk.commit(self.shard, action.writes)
        if bad:
            return ac.CommitFailed(action.ticket, bad)
        for write, meta in zip(blocks, before, strict=True):
            self.world.books.owner_wrote(write, meta)
        stripes = [w for w in action.writes if isinstance(w, st.StripeWrite)]
        for stripe, meta in {write.stripe: write.meta for write in stripes}.items():
            block = Block(stripe, self.world.layout.position_of(stripe, self.shard))
            self.world.check_parity(self.disk, block, meta)
        entries = [write.log.append for write in blocks if write.log.append is not None]
        for entry in entries:
            self.world.count["forgotten"] += sum(mark.step == FORGET for mark in entry.marks)
        if entries:
            self.world.step("W2", self)
        if any(write.undo.append is not None for write in stripes):
            self.world.step("W3 applied", self)
        return ac.Committed(action.ticket)
