"""A shard's disk in memory: what Redis or Valkey does for the store, with real bytes.

Every call is atomic, as one MULTI is. It keeps records with their crc, touched rows, outboxes and
undo rings; it can be copied (a disk restored from a file) and damaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Rows, tail
from proa.store.protocol.records import pack, unpack


@dataclass(slots=True)
class Shelf:
    """The rows of one block."""

    records: dict[int, bytes] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)

    def read(self, rows: Rows, width: int) -> tuple[np.ndarray, frozenset[int]]:
        records = [self.records.get(row) for row in rows.tolist()]
        return unpack(rows, records, self.touched, width)

    def write(self, rows: Rows, data: np.ndarray) -> None:
        for row, record in zip(rows.tolist(), pack(data), strict=True):
            self.records[row] = record
            self.touched.add(row)

    def clear(self) -> None:
        self.records.clear()
        self.touched.clear()


def change(log: list[Entry], write: st.LogWrite) -> None:
    cut = write.cut_to
    log[:] = [e for e in log if e.to > write.trim_to and (cut is None or e.to <= cut)]
    if write.append is not None:
        log.append(write.append)


class Disk:
    """One life of a server's memory, named `name`."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.stamp = 0
        self.fences: dict[int, int] = {}
        self.shelves: dict[Block, Shelf] = {}
        self.metas: dict[Block, st.BlockMeta | st.StripeMeta] = {}
        self.outboxes: dict[Block, list[Entry]] = {}
        self.undo: dict[Block, dict[int, list[Entry]]] = {}
        self.broken: set[int] = set()

    def copy(self, name: str) -> Disk:
        """Restored from a file that was written just now; what is immutable is shared."""
        other = Disk(name, self.layout)
        other.stamp, other.fences = self.stamp, dict(self.fences)
        other.metas = dict(self.metas)
        other.shelves = {b: Shelf(dict(s.records), set(s.touched)) for b, s in self.shelves.items()}
        other.outboxes = {b: list(log) for b, log in self.outboxes.items()}
        other.undo = {b: {i: list(e) for i, e in logs.items()} for b, logs in self.undo.items()}
        return other

    def image(self, shard: int) -> st.ShardImage:
        self.broken.clear()  # who reads it is new, and has not met its bad rows yet
        blocks, stripes = {}, {}
        for block, meta in self.metas.items():
            if isinstance(meta, st.BlockMeta):
                blocks[block] = st.BlockImage(meta, tuple(self.outboxes.get(block, ())))
            else:
                undo = {i: tuple(log) for i, log in self.undo.get(block, {}).items()}
                stripes[block.stripe] = st.StripeImage(meta, undo)
        return st.ShardImage(self.name, self.stamp, dict(self.fences), blocks, stripes)

    def shelf(self, block: Block) -> Shelf:
        found = self.shelves.get(block)
        if found is None:
            found = self.shelves[block] = Shelf()
        return found

    # --- writes

    def commit(self, shard: int, writes: tuple[st.Write, ...]) -> tuple[int, ...]:
        """All of it; or nothing, and the stripes for which that is."""
        bad = self._bad(shard, writes)
        self.broken |= bad
        if bad:
            return tuple(sorted(bad))
        for write in writes:
            match write:
                case st.BlockWrite():
                    self.block_write(write)
                case st.StripeWrite(stripe):
                    self.stripe_write(self._parity(shard, stripe), write)
                case st.FenceWrite(source, epoch):
                    self.fences[source] = max(epoch, self.fences.get(source, 0))
                case st.StampWrite(epoch):
                    self.stamp = epoch
        return ()

    def _parity(self, shard: int, stripe: int) -> Block:
        return Block(stripe, self.layout.position_of(stripe, shard))

    def _bad(self, shard: int, writes: tuple[st.Write, ...]) -> set[int]:
        bad, reset = set(), set()
        for write in writes:
            if not isinstance(write, st.StripeWrite) or write.stripe in reset:
                continue
            if write.reset:
                reset.add(write.stripe)
                bad.discard(write.stripe)
            elif write.stripe in self.broken or (
                write.rows is not None
                and self._read(self._parity(shard, write.stripe), write.rows)[1]
            ):
                bad.add(write.stripe)
        return bad

    def block_write(self, write: st.BlockWrite) -> None:
        block, shelf = write.block, self.shelf(write.block)
        log = self.outboxes.setdefault(block, [])
        if write.reset:
            shelf.clear()
            log.clear()
        if write.rows is not None:
            shelf.write(write.rows, write.data)
        change(log, write.log)
        self.metas[block] = write.meta

    def stripe_write(self, block: Block, write: st.StripeWrite) -> None:
        shelf = self.shelf(block)
        if write.reset:
            shelf.clear()
            self.undo.pop(block, None)
            self.broken.discard(write.stripe)
        if write.rows is not None:
            old, missing = self._read(block, write.rows)
            assert not missing
            shelf.write(write.rows, old ^ write.delta)
        if write.source >= 0:
            change(self.undo.setdefault(block, {}).setdefault(write.source, []), write.undo)
        self.metas[block] = write.meta

    # --- reads

    def fetch(self, block: Block, rows: Rows) -> tuple[np.ndarray, frozenset[int]]:
        return self._read(block, rows)

    def _read(self, block: Block, rows: Rows) -> tuple[np.ndarray, frozenset[int]]:
        return self.shelf(block).read(rows, self.layout.extent_of(block.stripe).width)

    def view(self, block: Block, rows: Rows) -> st.View | None:
        meta = self.metas.get(block)
        if meta is None:
            return None
        data, missing = self._read(block, rows)
        if isinstance(meta, st.StripeMeta):
            logs = {i: tail(log, rows) for i, log in self.undo.get(block, {}).items()}
            return st.StripeView(self.stamp, meta, data, missing, logs)
        gone = meta.pending | meta.lost
        missing |= {i for i, row in enumerate(rows.tolist()) if row in gone}
        return st.BlockView(meta, data, missing, tail(self.outboxes.get(block, ()), rows))

    def flip(self, block: Block, row: int) -> None:
        """Bit rot."""
        record = bytearray(self.shelf(block).records[row])
        record[0] ^= 16
        self.shelf(block).records[row] = bytes(record)
