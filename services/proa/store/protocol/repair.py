"""Rows that a new owner has still to decode: at first touch, and by a background sweep.

Facts ecrm C5 recovery (4). A pending row was not written since the version the block was rebuilt
from, so whatever version a parity block includes, its share of that row is the same.
"""

from __future__ import annotations

import numpy as np

from proa.store.gf256 import Bytes
from proa.store.protocol.actions import Note, Phase, Read
from proa.store.protocol.gather import Gather, Verdict
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows, between
from proa.store.protocol.owned import Owned, OwnerState
from proa.store.protocol.pace import Pace
from proa.store.protocol.rowset import RowSet
from proa.store.protocol.storage import BlockWrite, View


class Repair:
    """At most one decode per block at a time; rows that pushes wait for go first."""

    def __init__(self, state: OwnerState) -> None:
        self._state = state
        self.pace = Pace(state.config.sweep_rows_per_s_max)
        self.wanted: dict[Block, Owned] = {}
        self._gathers: dict[Block, Gather] = {}
        self._reads: dict[int, tuple[Owned, Gather, Block]] = {}

    def want(self, owned: Owned, rows: RowSet) -> None:
        """Decode these rows before all others."""
        owned.wanted |= rows
        self.wanted[owned.block] = owned

    def bad(self, block: Block, rows: RowSet) -> None:
        """These rows on the disk are not what was written."""
        self._state.decode(block, rows - self._state.blocks[block].lost)

    def hurry(self) -> None:
        """Begin to decode rows that pushes wait for."""
        wanted, self.wanted = self.wanted, {}
        self._start(list(wanted.values()))

    def sweep(self, now: float) -> None:
        """Begin decodes of blocks that have pending rows, as long as few are under way, and not
        more of them than the pace allows."""
        if self._state.phase is not Phase.OPEN:
            return
        room = self._state.config.sweep_blocks - len(self._gathers)
        if self.pace.limit(now):
            while room > 0 and self.pace.is_free(now):
                some = self._state.next_pending(1, self._gathers)
                if not some:
                    return
                self.pace.take(self._start(some))
                room -= 1
        else:
            self._start(self._state.next_pending(room, self._gathers))

    def _start(self, blocks: list[Owned]) -> int:
        """How many rows are under way now that were not."""
        state, count = self._state, 0
        for owned in blocks:
            if not owned.pending or owned.block in self._gathers:
                continue
            chosen = owned.wanted & owned.pending or owned.pending
            rows = chosen.array()[: state.config.sweep_rows]
            gather = Gather(state.layout, state.map, owned.block, rows)
            asked = gather.start()
            if asked:
                self._gathers[owned.block] = gather
                self._read(owned, gather, asked)
                count += len(rows)
        return count

    def _read(self, owned: Owned, gather: Gather, asked: list[Block]) -> None:
        state = self._state
        for block in asked:
            shard = state.layout.shard_of(*block)
            ticket = state.journal.ticket()
            self._reads[ticket] = (owned, gather, block)
            disk = gather.map.shards[shard].disk
            state.out.append(Read(ticket, shard, disk, block, gather.rows))

    def read_done(self, ticket: int, view: View | None) -> bool:
        """An answer came; True: rows were repaired or given up, pushes may go on."""
        owned, gather, block = self._reads.pop(ticket)
        further, verdict = gather.take(block, view)
        self._read(owned, gather, further)
        if verdict is None:
            return False
        del self._gathers[owned.block]
        return self._repaired(owned, verdict)

    def _repaired(self, owned: Owned, verdict: Verdict) -> bool:
        """Write what was found, forward from the parity's version to the block's own."""
        keep = np.isin(verdict.rows, owned.pending.array())
        rows, data = verdict.rows[keep], verdict.data[keep]
        if len(rows) and verdict.epoch == owned.epoch:
            width = self._state.layout.extent_of(owned.block.stripe).width
            change = between(owned.outbox, verdict.version, owned.version, rows, width)
            if change is None:
                return False
            owned.tries = 0
            self._note(owned, rows, data ^ change)
            return True
        if verdict.lost:
            owned.tries += 1
            if owned.tries >= self._state.config.decode_tries:
                self._give_up(owned, RowSet.of(verdict.lost) & owned.pending)
                return True
        return False

    def _note(self, owned: Owned, rows: Rows, data: Bytes) -> None:
        done = RowSet.of_rows(rows)
        owned.pending -= done
        owned.wanted &= owned.pending
        touched = data.any(axis=1)
        write = BlockWrite(owned.block, owned.meta(), rows[touched], data[touched])
        self._state.journal.commit((write,))
        self._state.out.append(Note("rows-decoded", owned.block, done))

    def _give_up(self, owned: Owned, rows: RowSet) -> None:
        """More than r losses (F9): said so, by name, to whoever asks for these rows."""
        owned.tries = 0
        owned.pending -= rows
        owned.wanted &= owned.pending
        rows -= self._state.padding(owned.block)
        owned.lost |= rows
        self._state.journal.commit((BlockWrite(owned.block, owned.meta()),))
        self._state.out.append(Note("data-lost", owned.block, rows))
