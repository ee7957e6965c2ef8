"""One shard's agent: the process beside its disk, owner of data blocks and keeper of parity blocks.

Events in, actions out, no clock and no I/O. An agent begins from what its disk holds and with
nothing else; when it is deposed it asks to be started again in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import Any

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import (
    COORDINATOR,
    Action,
    CommitFailed,
    Committed,
    Event,
    Extended,
    Fetched,
    Grow,
    Paced,
    Phase,
    ReadDone,
    Received,
    Restart,
    RowsBad,
    Send,
    Ticked,
)
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.journal import Journal
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.owned import Padding
from proa.store.protocol.owner import Owner
from proa.store.protocol.pace import Pace
from proa.store.protocol.parity import Parity
from proa.store.protocol.pushes import Update
from proa.store.protocol.rowset import RowSet
from proa.store.protocol.storage import ShardImage, StampWrite, Write

Handler = Callable[[Any, Hashable, float], None]


class Agent:
    """`nonce` names the process: no two processes of a store ever have the same one."""

    owner_class = Owner
    parity_class = Parity

    def __init__(
        self,
        layout: Layout,
        shard: int,
        config: StoreConfig,
        image: ShardImage,
        update: Update,
        nonce: int,
        padding: Padding | None = None,
    ) -> None:
        self.layout, self.shard, self.config, self.nonce = layout, shard, config, nonce
        self._hello = ms.Hello(shard, nonce, image.disk, image.stamp)
        self._out: list[Action] = []
        self._journal = Journal(self._out)
        self.parity = self.parity_class(layout, shard, config, image, self._journal, self._out)
        self.owner = self.owner_class(
            layout, shard, config, image, self._journal, update, self._out
        )
        self.pace = self.parity.pace = self.owner.repair.pace = Pace(config.sweep_rows_per_s_max)
        if padding is not None:
            self.owner.state.padding = padding
        self.epoch = 0
        self.running = False
        self.deposed = False
        self.map = ClusterMap(-1, {})
        self._asked_at = self._beat_at = float("-inf")
        self._messages = self._message_handlers()
        self._events: dict[type, Callable[[Any, float], None]] = {
            Committed: lambda e, now: self._journal.done(e.ticket, now),
            Fetched: self.owner.fetched,
            ReadDone: self.owner.read_done,
            CommitFailed: lambda e, _: self._failed(e),
            RowsBad: lambda e, _: self._rows_bad(e.block, e.rows),
            Paced: lambda e, now: self.pace.lease(e.rows_per_s_max, now + e.lease_s),
            Extended: lambda e, now: self._extend(e.layout, now),
            Ticked: lambda _, now: self._tick(now),
        }

    def _message_handlers(self) -> dict[type, Handler]:
        owner, parity = self.owner, self.parity
        return {
            ms.Push: owner.pushes.arrived,
            ms.Ack: lambda m, _, now: owner.shipping.acked(m, now),
            ms.Delta: lambda m, sender, _: parity.delta(m, sender),
            ms.Fence: lambda m, sender, _: parity.fence(m, sender),
            ms.Adopt: lambda m, sender, _: parity.adopt(m, sender),
            ms.Fenced: lambda m, _, now: owner.fenced(m, now),
            ms.Adopted: lambda m, _, now: owner.adopted(m, now),
            ms.Join: owner.join,
            ms.Snapshot: lambda m, sender, _: parity.snapshot(m, sender),
            ms.Joined: lambda m, sender, _: parity.joined(m, sender),
            ms.Mismatch: lambda m, *_: parity.mismatch(m),
            ms.Refused: lambda m, *_: self._refused(m),
            ms.Grant: lambda m, _, now: self._granted(m, now),
            ms.MapTold: lambda m, _, now: self._told(m.map, now),
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event that happened at `now` (seconds); the actions it calls for."""
        if self.deposed:
            return []
        self._dispatch(event, now)
        if self.owner.repair.wanted:
            self.owner.repair.hurry()
        out = self._out.copy()
        self._out.clear()
        return out

    def _dispatch(self, event: Event, now: float) -> None:
        if isinstance(event, Received):
            message = event.message
            if self.running or isinstance(message, ms.Grant | ms.MapTold):
                self._messages[type(message)](message, event.sender, now)
            return
        self._events[type(event)](event, now)

    def _failed(self, event: CommitFailed) -> None:
        again = self._journal.failed(event.ticket)
        if event.stripes:
            self.parity.failed(event.stripes)
            if again is not None:
                again(event.stripes)
        else:
            self._depose("the disk takes no writes")

    def _extend(self, layout: Layout, now: float) -> None:
        if layout.stripes <= self.layout.stripes:
            return
        if not self.running:
            self._depose("tables were added while it started")
            return
        self.layout = layout
        self.parity.extend(layout)
        self.owner.extend(layout, now)

    def _rows_bad(self, block: Block, rows: tuple[int, ...]) -> None:
        if block.position >= self.layout.k:
            self.parity.failed((block.stripe,))
        else:
            self.owner.repair.bad(block, RowSet.of(rows))

    def _tick(self, now: float) -> None:
        if not self.epoch:
            if now - self._asked_at >= self.config.resend_s:
                self._asked_at = now
                self._out.append(Send(COORDINATOR, self._hello))
            return
        if now - self._beat_at >= self.config.heartbeat_s:
            self._beat_at = now
            beat = ms.Heartbeat(self.shard, self.epoch, self.map.version, self._ready())
            self._out.append(Send(COORDINATOR, beat))
            if self.running and self.map.stripes > self.layout.stripes:
                self._out.append(Grow(self.map.stripes))
        if self.running:
            # They share one pace. Data first: parity waits for data, others' or ours, that may wait
            # for this sweep, and its questions without answer would use up the pace for ever.
            self.owner.tick(now)
            self.parity.ask(now)

    def _ready(self) -> int:
        # Older stripes may be on their way, or lost for good: new tables do not wait for them.
        new = self.map.settled
        whole = self.running and self.owner.is_ready() and self.parity.is_whole(new)
        return self.layout.stripes if whole else 0

    # --- membership

    def _granted(self, grant: ms.Grant, _now: float) -> None:
        """Stamp the disk first: a disk that was granted an epoch and does not know it would be
        taken for one that has everything."""
        if grant.nonce != self.nonce or self.epoch:
            return
        self.epoch, self.map = grant.epoch, grant.map
        self._prepare(self.parity.start(grant), grant)

    def _prepare(self, todo: Iterator[Write], grant: ms.Grant) -> None:
        """In parts, and the stamp when the disk has all of them."""
        some = tuple(islice(todo, self.config.open_blocks))
        if some:
            self._journal.commit(some, lambda _now: self._prepare(todo, grant))
        else:
            stamp = StampWrite(grant.epoch)
            self._journal.commit((stamp,), lambda now: self._run(grant, now))

    def _run(self, grant: ms.Grant, now: float) -> None:
        self.running = True
        self.owner.start(grant, self.map, now)

    def _told(self, told: ClusterMap, now: float) -> None:
        if not self.epoch or told.version <= self.map.version:
            return
        entry = told.shards[self.shard]
        self.map = told
        if entry.epoch != self.epoch or not entry.up:
            self._depose("another process may have this shard")
            return
        self.parity.learn(told)
        if self.running:
            self.owner.map_changed(told, now)

    def _refused(self, told: ms.Refused) -> None:
        if told.source == self.shard and told.epoch > self.epoch:
            self._depose("a later owner has fenced this one")

    def _depose(self, why: str) -> None:
        self.deposed = True
        self._out.append(Restart(why))

    @property
    def phase(self) -> Phase:
        """Where its data blocks stand."""
        return self.owner.state.phase
