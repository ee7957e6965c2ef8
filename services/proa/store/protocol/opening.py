"""How an owner opens: fence, compare, adopt (facts ecrm C5 recovery (1) to (4), F1 to F3).

1. Fence: every parity shard that is up refuses earlier owners and says what it includes (a_j).
2. Compare, block by block. A disk whose (epoch, version) is not behind any joined parity block
   keeps its content, and its outbox brings the parity up. Any other block is rebuilt from v*, the
   oldest joined version: acknowledged pushes are in it (I3), what is beyond was acknowledged by
   nobody. Comparing epochs too keeps a branch that a fenced owner wrote apart from the real one.
3. Adopt: parity blocks beyond v* go back to it by their undo ring, all follow the new epoch. Only
   when all have adopted it does the owner open; so joined parity blocks never include two
   different histories, and comparing version numbers is enough.

A shard may have tens of thousands of blocks: all of it goes in parts of `open_blocks`, asked for
one after the other, and the next part waits for the disk. Nothing above spans more than one block,
so an owner that dies in between leaves some blocks compared and others not, which is no harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Note, Phase, Send
from proa.store.protocol.layout import Block
from proa.store.protocol.log import NO_SESSIONS
from proa.store.protocol.owned import Owned, OwnerState, Peer
from proa.store.protocol.rowset import NO_ROWS, RowSet
from proa.store.protocol.storage import Applied, BlockWrite, LogWrite

Place = tuple[Block, int]
Held = dict[Place, tuple[int, Applied]]


class _Asked:
    """What is asked of one parity shard, part by part, and what it said."""

    def __init__(self) -> None:
        self.part = 0
        self.fenced = False
        self.held: Held = {}
        self.pages: list[dict[Place, tuple[int, int]]] | None = None
        self.adopted: Held = {}
        self.said_at = float("-inf")

    @property
    def is_done(self) -> bool:
        """Whether it has adopted everything that it was asked to."""
        return self.pages is not None and self.part >= len(self.pages)


class Opening:
    """One attempt after the other, until one is not disturbed by a change of the map."""

    def __init__(self, state: OwnerState, *, fresh: bool) -> None:
        self._state = state
        self._fresh = fresh
        self._attempt = 0
        self._shards: dict[int, _Asked] = {}
        self._rebuild: dict[Block, int] = {}
        self._lost: set[Block] = set()
        self._deciding = self._finishing = False

    def start(self, now: float) -> None:
        """Begin, or begin again."""
        state = self._state
        state.phase = Phase.OPENING
        self._attempt += 1
        self._rebuild, self._lost = {}, set()
        self._deciding = self._finishing = False
        self._shards = {s: _Asked() for s in sorted(state.parity_shards) if state.map.shards[s].up}
        self._seen = self._trust()
        self.remind(now)
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

    def remind(self, now: float) -> None:
        """Say again what was not answered."""
        for shard, asked in self._shards.items():
            if now - asked.said_at >= self._state.config.resend_s:
                self._say(shard, asked, now)

    def _say(self, shard: int, asked: _Asked, now: float) -> None:
        state = self._state
        message: ms.Message
        if not asked.fenced:
            message = ms.Fence(state.shard, state.epoch, asked.part)
        elif asked.pages is not None and not asked.is_done:
            message = ms.Adopt(state.shard, state.epoch, asked.pages[asked.part], asked.part)
        else:
            return
        asked.said_at = now
        state.out.append(Send(shard, message))

    def fenced(self, told: ms.Fenced, now: float) -> None:
        """Step 1 is done at one shard, for one part of its blocks."""
        entry = self._state.map.shards.get(told.shard)
        asked = self._shards.get(told.shard)
        if told.epoch != self._state.epoch or asked is None or asked.fenced:
            return
        if entry is None or entry.epoch != told.stamp or told.part != asked.part:
            return
        asked.held.update(told.held)
        asked.part += 1
        if told.more:
            self._say(told.shard, asked, now)
            return
        asked.fenced, asked.part = True, 0
        self._decide(now)

    # --- in parts

    def _in_parts(
        self,
        todo: Iterator[Owned],
        part: Callable[[list[Owned], float], list[BlockWrite]],
        then: Callable[[float], None],
        now: float,
    ) -> None:
        """`part` for some of `todo`, the next ones when its writes are on the disk; then `then`.
        On the disk before anywhere else: a disk behind its parity would be rebuilt in vain."""
        some = list(islice(todo, self._state.config.open_blocks))
        if not some:
            then(now)
            return
        attempt = self._attempt

        def go_on(now: float) -> None:
            if attempt == self._attempt:
                self._in_parts(todo, part, then, now)

        self._state.journal.commit(tuple(part(some, now)), go_on)

    # --- compare

    def _decide(self, now: float) -> None:
        if self._deciding or not all(asked.fenced for asked in self._shards.values()):
            return
        self._deciding = True
        places: dict[int, dict[Place, tuple[int, int]]] = {shard: {} for shard in self._shards}

        def compare(some: list[Owned], _now: float) -> list[BlockWrite]:
            return [write for owned in some for write in self._compare(owned, places)]

        def compared(now: float) -> None:
            for shard, asked in self._shards.items():
                found = iter(places[shard].items())
                asked.pages = []
                while page := dict(islice(found, self._state.config.open_blocks)):
                    asked.pages.append(page)
                self._say(shard, asked, now)
            self._finish(now)

        self._in_parts(iter(list(self._state.blocks.values())), compare, compared, now)

    def _compare(
        self, owned: Owned, places: dict[int, dict[Place, tuple[int, int]]]
    ) -> list[BlockWrite]:
        state = self._state
        joined = self._joined(owned.block)
        kept = self._keeps(owned, joined)
        if kept:
            owned.epoch = state.epoch
        elif joined:
            self._rebuild[owned.block] = min(a.version for _, a in joined.values())
        else:
            self._lost.add(owned.block)
        for position, (term, applied) in joined.items():
            shard = state.layout.shard_of(owned.block.stripe, position)
            version = self._rebuild.get(owned.block, applied.version)
            places[shard][owned.block, position] = (term, version)
        return [BlockWrite(owned.block, owned.meta())] if kept else []

    def _joined(self, block: Block) -> dict[int, tuple[int, Applied]]:
        found = {}
        for position in self._state.layout.parity_positions():
            shard = self._state.layout.shard_of(block.stripe, position)
            asked = self._shards.get(shard)
            term, applied = asked.held.get((block, position), (0, None)) if asked else (0, None)
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
        """Step 3 is done at one shard for one part, unless it follows another version than it was
        asked to."""
        asked = self._shards.get(told.shard)
        if told.epoch != self._state.epoch or asked is None or asked.pages is None:
            return
        if asked.is_done or told.part != asked.part:
            return
        for place, (term, version) in asked.pages[asked.part].items():
            found = told.held.get(place)
            if found is None or found[0] != term or found[1].epoch != told.epoch:
                self.start(now)
                return
            if found[1].version != version:
                # An earlier attempt of this epoch was adopted: compare again, with what it left.
                self.start(now)
                return
        asked.adopted.update(told.held)
        asked.part += 1
        self._say(told.shard, asked, now)
        self._finish(now)

    def _finish(self, now: float) -> None:
        if self._finishing or not all(asked.is_done for asked in self._shards.values()):
            return
        self._finishing = True
        self._in_parts(iter(list(self._state.blocks.values())), self._take_on, self._open, now)

    def _take_on(self, some: list[Owned], now: float) -> list[BlockWrite]:
        writes = [self._empty(owned) for owned in some if self._is_new(owned)]
        for owned in some:
            owned.peers = {
                position: Peer(term, a.version, a.version, a.version, now)
                for position, (term, a) in self._adopted_of(owned.block).items()
            }
            if owned.watermark() < owned.version:
                self._state.busy[owned.block] = owned
        return writes

    def _open(self, _now: float) -> None:
        self._state.phase = Phase.OPEN
        self._state.out.append(Note("opened"))

    def _is_new(self, owned: Owned) -> bool:
        return owned.block in self._rebuild or owned.block in self._lost

    def _adopted_of(self, block: Block) -> dict[int, tuple[int, Applied]]:
        found = {}
        for position in self._state.layout.parity_positions():
            asked = self._shards.get(self._state.layout.shard_of(block.stripe, position))
            if asked is not None and (block, position) in asked.adopted:
                found[position] = asked.adopted[block, position]
        return found

    def _empty(self, owned: Owned) -> BlockWrite:
        """A block to decode row by row, or one that nothing can bring back."""
        state = self._state
        rows = RowSet.every(state.layout.extent_of(owned.block.stripe).rows)
        held = self._adopted_of(owned.block)
        owned.epoch = state.epoch
        owned.version = owned.durable = self._rebuild.get(owned.block, max(owned.version, 0))
        owned.sessions = next((a.sessions for _, a in held.values()), NO_SESSIONS)
        owned.outbox = deque()
        rebuilt = owned.block in self._rebuild
        owned.pending = owned.lost = NO_ROWS
        if not rebuilt:
            owned.lost = rows = rows - state.padding(owned.block)
        if rebuilt and owned.version:  # version 0 is all zero
            state.decode(owned.block, rows)
        kind = "rebuild" if rebuilt else "data-lost"
        state.out.append(Note(kind, owned.block, rows))
        return BlockWrite(owned.block, owned.meta(), log=LogWrite(), reset=True)
