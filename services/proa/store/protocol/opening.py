"""How an owner opens: fence, compare, adopt (facts ecrm C5 recovery (1) to (4), F1 to F3).

1. Fence: every parity shard that is up refuses earlier owners and says what it includes (a_j).
2. Compare, block by block. A disk whose (epoch, version) is not behind any joined parity block
   keeps its content, and its outbox brings the parity up. Any other block is rebuilt from v*, the
   oldest joined version: acknowledged pushes are in it (I3), what is beyond was acknowledged by
   nobody. Comparing epochs too keeps a branch that a fenced owner wrote apart from the real one.
3. Adopt: parity blocks beyond v* go back to it by their undo ring, all follow the new epoch. Only
   when all have adopted it does the owner open; so joined parity blocks never include two
   different histories, and comparing version numbers is enough.
"""

from __future__ import annotations

from collections import deque

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Note, Phase, Send
from proa.store.protocol.layout import Block
from proa.store.protocol.log import NO_SESSIONS
from proa.store.protocol.owned import Owned, OwnerState, Peer
from proa.store.protocol.storage import Applied, BlockWrite, LogWrite

Place = tuple[Block, int]


class Opening:
    """One attempt after the other, until one is not disturbed by a change of the map."""

    def __init__(self, state: OwnerState, *, fresh: bool) -> None:
        self._state = state
        self._fresh = fresh
        self._fenced: dict[int, ms.Fenced] = {}
        self._adopted: dict[int, ms.Adopted] = {}
        self._asked: dict[int, dict[Place, tuple[int, int]]] = {}
        self._rebuild: dict[Block, int] = {}
        self._lost: set[Block] = set()
        self._deciding = False

    def start(self, now: float) -> None:
        """Begin, or begin again."""
        state = self._state
        state.phase = Phase.OPENING
        self._fenced, self._adopted, self._asked = {}, {}, {}
        self._rebuild, self._lost, self._deciding = {}, set(), False
        self._targets = {s for s in state.parity_shards if state.map.shards[s].up}
        self._seen = self._trust()
        self.remind()
        self._decide(now)

    def map_changed(self, now: float) -> None:
        """A parity shard went or came: what it said, or did not say, no longer counts."""
        state = self._state
        if self._trust() != self._seen:
            # As in Shipping.map_changed: clients may still decode from what is given up here.
            state.open_at = max(state.open_at, now + state.config.map_ttl_s)
            self.start(now)

    def _trust(self) -> dict[int, tuple[bool, int]]:
        shards = self._state.map.shards
        return {s: (shards[s].up, shards[s].trust_since) for s in self._state.parity_shards}

    def remind(self) -> None:
        """Say again what was not answered."""
        state = self._state
        for shard in sorted(self._targets):
            if shard not in self._fenced:
                state.out.append(Send(shard, ms.Fence(state.shard, state.epoch)))
            elif shard in self._asked and shard not in self._adopted:
                adopt = ms.Adopt(state.shard, state.epoch, self._asked[shard])
                state.out.append(Send(shard, adopt))

    def fenced(self, told: ms.Fenced, now: float) -> None:
        """Step 1 is done at one shard."""
        entry = self._state.map.shards.get(told.shard)
        if told.epoch != self._state.epoch or told.shard not in self._targets:
            return
        if entry is None or entry.epoch != told.stamp or told.shard in self._fenced:
            return
        self._fenced[told.shard] = told
        self._decide(now)

    # --- compare

    def _decide(self, now: float) -> None:
        state = self._state
        if self._deciding or self._targets - self._fenced.keys():
            return
        self._deciding = True
        kept = []
        self._asked = {shard: {} for shard in self._targets}
        for owned in state.blocks.values():
            joined = self._joined(owned.block)
            if self._keeps(owned, joined):
                owned.epoch = state.epoch
                kept.append(BlockWrite(owned.block, owned.meta()))
            elif joined:
                self._rebuild[owned.block] = min(a.version for _, a in joined.values())
            else:
                self._lost.add(owned.block)
            for position, (term, applied) in joined.items():
                shard = state.layout.shard_of(owned.block.stripe, position)
                version = self._rebuild.get(owned.block, applied.version)
                self._asked[shard][owned.block, position] = (term, version)
        # On the disk before anywhere else: a disk behind its parity would be rebuilt in vain.
        state.journal.commit(tuple(kept), lambda _now: self.remind())
        self._finish(now)

    def _joined(self, block: Block) -> dict[int, tuple[int, Applied]]:
        found = {}
        for position in self._state.layout.parity_positions():
            shard = self._state.layout.shard_of(block.stripe, position)
            told = self._fenced.get(shard)
            term, applied = told.held.get((block, position), (0, None)) if told else (0, None)
            if applied and applied.joined and self._state.map.shards[shard].trusts(term):
                found[position] = (term, applied)
        return found

    def _keeps(self, owned: Owned, joined: dict[int, tuple[int, Applied]]) -> bool:
        """Whether the disk has everything of this block that was ever acknowledged."""
        if owned.block.stripe >= self._state.map.settled and owned.version == 0:
            return not any(applied.version for _, applied in joined.values())
        if not joined:
            return self._fresh and owned.epoch >= 0
        return owned.epoch >= max(a.epoch for _, a in joined.values()) and owned.version >= max(
            a.version for _, a in joined.values()
        )

    # --- adopt

    def adopted(self, told: ms.Adopted, now: float) -> None:
        """Step 3 is done at one shard, unless it follows another version than it was asked to."""
        if told.epoch != self._state.epoch or told.shard not in self._asked:
            return
        for place, (term, version) in self._asked[told.shard].items():
            found = told.held.get(place)
            if found is None or found[0] != term or found[1].epoch != told.epoch:
                self.start(now)
                return
            if found[1].version != version:
                # An earlier attempt of this epoch was adopted: compare again, with what it left.
                self.start(now)
                return
        self._adopted[told.shard] = told
        self._finish(now)

    def _finish(self, now: float) -> None:
        state = self._state
        if any(asked and s not in self._adopted for s, asked in self._asked.items()):
            return
        writes = [self._empty(owned) for owned in state.blocks.values() if self._is_new(owned)]
        for owned in state.blocks.values():
            owned.peers = {
                position: Peer(term, a.version, a.version, a.version, now)
                for position, (term, a) in self._adopted_of(owned.block).items()
            }
            state.busy[owned.block] = owned
        if writes:
            state.journal.commit(tuple(writes))
        state.phase = Phase.OPEN
        state.out.append(Note("opened"))

    def _is_new(self, owned: Owned) -> bool:
        return owned.block in self._rebuild or owned.block in self._lost

    def _adopted_of(self, block: Block) -> dict[int, tuple[int, Applied]]:
        found = {}
        for position in self._state.layout.parity_positions():
            shard = self._state.layout.shard_of(block.stripe, position)
            if (block, position) in self._asked.get(shard, ()):
                found[position] = self._adopted[shard].held[block, position]
        return found

    def _empty(self, owned: Owned) -> BlockWrite:
        """A block to decode row by row, or one that nothing can bring back."""
        state = self._state
        rows = set(range(state.layout.extent_of(owned.block.stripe).rows))
        held = self._adopted_of(owned.block)
        owned.epoch = state.epoch
        owned.version = owned.durable = self._rebuild.get(owned.block, max(owned.version, 0))
        owned.sessions = next((a.sessions for _, a in held.values()), NO_SESSIONS)
        owned.outbox = deque()
        rebuilt = owned.block in self._rebuild
        owned.pending, owned.lost = set(), set() if rebuilt else rows
        if rebuilt and owned.version:  # version 0 is all zero
            state.decode(owned.block, rows)
        kind = "rebuild" if rebuilt else "data-lost"
        state.out.append(Note(kind, owned.block, tuple(sorted(rows))))
        return BlockWrite(owned.block, owned.meta(), log=LogWrite(), reset=True)
