"""From the outbox to all parity blocks, and the acknowledgement after that (ecrm C5 W3, W4)."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from proa.store.gf256 import Bytes
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Found, Note, Send
from proa.store.protocol.log import between
from proa.store.protocol.owned import Owned, OwnerState, Peer, Waiting
from proa.store.protocol.rowset import RowSet


class Shipping:
    """Keeps every peer of every block supplied; repeats what is not acknowledged in time."""

    def __init__(self, state: OwnerState) -> None:
        self._state = state
        self._snapshots: dict[int, tuple[ms.Join, Hashable, int]] = {}

    def ship(self, owned: Owned, now: float) -> None:
        """W3: send what the disk has and a peer was not sent. W2 comes first: data leads (I2)."""
        mark = owned.watermark()
        for position, peer in owned.peers.items():
            to = self._state.layout.shard_of(owned.block.stripe, position)
            for entry in owned.outbox if position not in owned.remake else ():
                if entry.start < peer.sent or entry.to > owned.durable:
                    continue
                delta = ms.Delta(owned.block, position, peer.term, owned.epoch, entry, mark)
                self._state.out.append(Send(to, delta))
                peer.sent, peer.sent_at = entry.to, now

    def remind(self, now: float) -> None:
        """Send again, from the last acknowledged version, what was sent long ago."""
        for owned in list(self._state.busy.values()):
            self.settle(owned, now)
            if not owned.waiting and owned.watermark() >= owned.version:
                del self._state.busy[owned.block]
            for peer in owned.peers.values():
                if peer.acked < owned.durable and now - peer.sent_at >= self._state.config.resend_s:
                    peer.sent, peer.sent_at = peer.acked, now
            self.remake(owned)
            self.ship(owned, now)

    def remake(self, owned: Owned) -> None:
        """Parity that would need more than the outbox has starts again (F5). Until it has, what it
        holds is taken for the block's content by whoever decodes: nothing is acknowledged."""
        oldest = owned.outbox[0].start if owned.outbox else owned.version
        for position, peer in owned.peers.items():
            if peer.acked < oldest:
                owned.remake[position] = peer.term
                to = self._state.layout.shard_of(owned.block.stripe, position)
                mismatch = ms.Mismatch(owned.block, position, peer.term)
                self._state.out.append(Send(to, mismatch))

    def acked(self, ack: ms.Ack, now: float) -> None:
        """A peer has a version on its disk."""
        owned = self._state.blocks.get(ack.block)
        if owned is None or owned.epoch != ack.epoch:
            return
        peer = owned.peers.get(ack.position)
        if peer is None or peer.term != ack.term:
            return
        peer.acked = max(peer.acked, ack.version)
        if ack.gap and peer.sent > peer.acked:
            peer.sent = peer.acked
            self.ship(owned, now)
        self.settle(owned, now)

    def settle(self, owned: Owned, now: float) -> None:
        """W4: acknowledge the pushes that every peer has."""
        if not owned.waiting:
            owned.trim()
            return
        safe = self.safe(owned) if now >= owned.hold_until else -1
        done = [waiting for version, waiting in owned.waiting if version <= safe]
        if done:
            owned.waiting = [item for item in owned.waiting if item[0] > safe]
            for waiting in done:
                self.one_done(waiting)
        owned.trim()

    def safe(self, owned: Owned) -> int:
        """The last version that survives r losses."""
        return owned.watermark()

    def one_done(self, waiting: Waiting) -> None:
        """A push is safe in one block more."""
        waiting.blocks -= 1
        if waiting.blocks == 0:
            push = waiting.push
            self._state.out.append(Send(waiting.sender, ms.PushDone(push.worker, push.step)))

    def map_changed(self, now: float) -> None:
        """Nobody waits for parity that is down or no longer trusted: its redundancy is gone. But
        nothing is acknowledged before every client that may still decode from it has a new map: it
        would miss what was acknowledged since."""
        state = self._state
        for owned in state.blocks.values():
            for position, peer in list(owned.peers.items()):
                shard = state.layout.shard_of(owned.block.stripe, position)
                if not state.map.shards[shard].trusts(peer.term):
                    del owned.peers[position]
                    owned.remake.pop(position, None)
                    owned.hold_until = now + state.config.map_ttl_s
                    state.busy[owned.block] = owned

    # --- parity that comes (back)

    def join(self, join: ms.Join, sender: Hashable, now: float) -> None:
        """A parity block asks for a block: as a snapshot, or to be told that it has it."""
        state = self._state
        owned = state.blocks.get(join.block)
        shard = state.layout.shard_of(join.block.stripe, join.position)
        if owned is None or not state.map.shards[shard].trusts(join.term):
            return
        if join.term > owned.remake.get(join.position, join.term):
            del owned.remake[join.position]
            owned.peers.pop(join.position, None)
            self.settle(owned, now)
        if owned.remake:
            return  # parity blocks must not include histories of which one lacks what happened
        peer = owned.peers.get(join.position)
        if peer is not None and (
            peer.term > join.term or (peer.term == join.term and peer.acked > peer.base)
        ):
            return  # an echo of a question that was answered
        if join.have is not None:
            self._compare(owned, join, sender, now)
        elif owned.pending or owned.lost:
            return
        elif owned.version == 0:
            extent = state.layout.extent_of(join.block.stripe)
            zero = np.zeros((extent.rows, extent.width), np.uint8)
            self._snapshot(owned, join, sender, 0, zero, now)
        else:
            owned.snapshots += 1
            every = np.arange(state.layout.extent_of(join.block.stripe).rows)
            ticket = state.journal.fetch({owned.block: every})
            self._snapshots[ticket] = (join, sender, owned.version)

    def _compare(self, owned: Owned, join: ms.Join, sender: Hashable, now: float) -> None:
        assert join.have is not None
        epoch, version = join.have
        mark = owned.watermark()
        if epoch != owned.epoch or not mark <= version <= owned.durable:
            if owned.pending or owned.lost:
                return  # it could not be given anything better
            mismatch = ms.Mismatch(owned.block, join.position, join.term)
            self._state.out.append(Send(sender, mismatch))
            return
        owned.peers[join.position] = Peer(join.term, mark, mark, version, now)
        self._state.busy[owned.block] = owned
        told = ms.Joined(owned.block, join.position, join.term, epoch, version)
        self._state.out.append(Send(sender, told))

    def fetched(self, ticket: int, found: Found, now: float) -> bool:
        """Rows of a snapshot came; False: this ticket is not of a snapshot."""
        asked = self._snapshots.pop(ticket, None)
        if asked is None:
            return False
        join, sender, version = asked
        owned = self._state.blocks[join.block]
        data, missing = found[join.block]
        if missing or owned.pending or owned.lost:
            owned.snapshots -= 1
            self._state.decode(join.block, RowSet.of(missing))
        else:
            self._snapshot(owned, join, sender, version, data, now)
            owned.snapshots -= 1
        owned.trim()
        return True

    def _snapshot(
        self, owned: Owned, join: ms.Join, sender: Hashable, version: int, data: Bytes, now: float
    ) -> None:
        """The block as of the watermark: older, and acknowledged pushes would be missing from it;
        newer, and it could not go back to what the other parity blocks have."""
        state = self._state
        mark = owned.watermark()
        extent = state.layout.extent_of(owned.block.stripe)
        rows = np.arange(extent.rows)
        change = between(owned.outbox, min(mark, version), max(mark, version), rows, extent.width)
        peer = owned.peers.get(join.position)
        if change is None or (peer is not None and peer.term > join.term):
            return
        data = data ^ change
        touched = np.flatnonzero(data.any(axis=1))
        later = [one for e in owned.outbox if e.start >= mark for one in e.marks]
        if peer is None or peer.term != join.term:
            owned.peers[join.position] = Peer(join.term, mark, mark, mark, now)
            state.busy[owned.block] = owned
        snapshot = ms.Snapshot(
            owned.block,
            join.position,
            join.term,
            owned.epoch,
            mark,
            touched,
            data[touched],
            owned.sessions.remove(later),
        )
        state.out.append(Send(sender, snapshot))
        state.out.append(Note("snapshot-sent", owned.block))
        self.ship(owned, now)
