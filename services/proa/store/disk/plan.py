"""From Commits to the commands of one transaction.

A plan works on what the disk will hold when the commits before are on it; `ShardState` follows when
the transaction was executed, and not before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from proa.store.disk import codec
from proa.store.disk import commands as cm
from proa.store.disk.kept import Kept
from proa.store.gf256 import Bytes
from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.records import pack, unpack

Records = dict[Block, dict[int, bytes | None]]


@dataclass(slots=True)
class ShardState:
    """What the disk holds beside rows. touched: packed bitmaps by block; logs: by key, the versions
    at which their entries end; broken: stripes that take nothing but a reset; kept: of parity."""

    shard: int
    layout: Layout
    touched: dict[Block, bytes] = field(default_factory=dict)
    logs: dict[bytes, list[int]] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    kept: Kept = field(default_factory=Kept)

    def parity_block(self, stripe: int) -> Block:
        """The parity block that this shard has of a stripe."""
        return Block(stripe, self.layout.position_of(stripe, self.shard))


@dataclass(slots=True)
class Plan:
    """`records`: rows of parity blocks as the disk has them, then as they will be. `written`: those
    that change; `checked`: by write of the commit that is being added, what it builds upon."""

    state: ShardState
    records: Records
    written: dict[Block, dict[int, bytes]] = field(default_factory=dict)
    checked: dict[int, Bytes] = field(default_factory=dict)
    commands: list[cm.Command] = field(default_factory=list)
    touched: dict[Block, bytes] = field(default_factory=dict)
    logs: dict[bytes, list[int]] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    metas: dict[bytes, bytes] = field(default_factory=dict)
    sessions: dict[bytes, bytes] = field(default_factory=dict)
    mended: set[int] = field(default_factory=set)

    def add(self, writes: tuple[st.Write, ...]) -> tuple[int, ...]:
        """One commit. Returns the stripes it cannot be made for; then nothing of it is."""
        bad = self._bad(writes)
        if bad:
            self.state.broken.update(bad)
            self.mended.difference_update(bad)
            return bad
        for write in writes:
            match write:
                case st.BlockWrite():
                    self._block(write)
                case st.StripeWrite():
                    self._stripe(write)
                case st.FenceWrite(source, epoch):
                    known = self.fences.get(source, self.state.fences.get(source, 0))
                    self.fences[source] = max(epoch, known)
                case st.StampWrite(epoch):
                    self.commands.append(("SET", cm.STAMP, epoch))
        return ()

    def finish(self) -> list[cm.Command]:
        """All commands: of what was set more than once, the last value alone."""
        hashes: dict[bytes, dict[Any, Any]] = {
            cm.METAS: self.metas,
            cm.SESSIONS: self.sessions,
            cm.FENCES: self.fences,
        }
        for key, values in hashes.items():
            if values:
                pairs = (part for pair in values.items() for part in pair)
                self.commands.append(("HSET", key, *pairs))
        return self.commands

    def executed(self) -> None:
        """The transaction is on the disk."""
        for block, records in self.written.items():
            self.state.kept.put(block, records)
        self.state.touched.update(self.touched)
        self.state.logs.update(self.logs)
        self.state.fences.update(self.fences)
        self.state.broken -= self.mended

    def _bad(self, writes: tuple[st.Write, ...]) -> tuple[int, ...]:
        bad: set[int] = set()
        reset: set[int] = set()
        seen: set[int] = set()
        self.checked.clear()
        for write in writes:
            if not isinstance(write, st.StripeWrite):
                continue
            if write.reset:
                reset.add(write.stripe)
                bad.discard(write.stripe)
            elif write.stripe not in reset and (
                (write.stripe in self.state.broken and write.stripe not in self.mended)
                or (write.rows is not None and self._misses(write, write.rows, seen))
            ):
                bad.add(write.stripe)
        return tuple(sorted(bad))

    def _misses(self, write: st.StripeWrite, rows: Rows, seen: set[int]) -> bool:
        old, missing = self._old(write.stripe, rows)
        if write.stripe not in seen:  # else a write before this one changes it
            self.checked[id(write)] = old
        seen.add(write.stripe)
        return bool(missing)

    def _old(self, stripe: int, rows: Rows) -> tuple[Bytes, frozenset[int]]:
        block = self.state.parity_block(stripe)
        known = self.records.get(block, {})
        records = [known.get(row) for row in rows.tolist()]
        width = self.state.layout.extent_of(stripe).width
        return unpack(rows, records, codec.Touched(self._bits(block)), width)

    def _changed(self, write: st.StripeWrite, rows: Rows, delta: Bytes) -> list[bytes]:
        """The records of these rows after the change."""
        old = self.checked.get(id(write))
        return pack((self._old(write.stripe, rows)[0] if old is None else old) ^ delta)

    # --- what is touched

    def _bits(self, block: Block) -> bytes:
        bits = self.touched.get(block) or self.state.touched.get(block)
        return bits or codec.bits_of(None, self._count(block))

    def _count(self, block: Block) -> int:
        return self.state.layout.extent_of(block.stripe).rows

    def _touch(self, block: Block, rows: Rows | None, *, reset: bool) -> bytes:
        bits = codec.bits_of(None, self._count(block)) if reset else self._bits(block)
        if rows is not None:
            bits = codec.with_rows(bits, rows)
        if reset or rows is not None or block not in self.state.touched:
            self.touched[block] = bits
        return bits

    # --- writes

    def _block(self, write: st.BlockWrite) -> None:
        block, log = write.block, cm.outbox_key(write.block)
        if write.reset:
            self.commands.append(("UNLINK", cm.rows_key(block), log))
            self.logs[log] = []
        bits = self._touch(block, write.rows, reset=write.reset)
        if write.rows is not None and write.data is not None and len(write.rows):
            self.commands.append(cm.set_rows(block, write.rows, pack(write.data)))
        self._log(log, write.log)
        meta = codec.data_meta(write.meta, bits, self._count(block))
        self._meta(block, meta, codec.sessions(write.meta.sessions))

    def _stripe(self, write: st.StripeWrite) -> None:
        block = self.state.parity_block(write.stripe)
        if write.reset:
            self._clear(block)
        if write.rows is not None and write.delta is not None and len(write.rows):
            records = self._changed(write, write.rows, write.delta)
            changed = dict(zip(write.rows.tolist(), records, strict=True))
            self.records.setdefault(block, {}).update(changed)
            self.written.setdefault(block, {}).update(changed)
            self.commands.append(cm.set_rows(block, write.rows, records))
        bits = self._touch(block, write.rows, reset=write.reset)
        if write.source >= 0:
            self._log(cm.undo_key(block, write.source), write.undo)
        meta = codec.parity_meta(write.meta, bits, self._count(block))
        self._meta(block, meta, codec.vector_sessions(write.meta))

    def _clear(self, block: Block) -> None:
        logs = [cm.undo_key(block, member) for member in range(self.state.layout.k)]
        self.commands.append(("UNLINK", cm.rows_key(block), *logs))
        self.logs.update((log, []) for log in logs)
        self.records[block], self.written[block] = {}, {}
        self.state.kept.forget(block)
        self.touched[block] = codec.bits_of(None, self._count(block))
        self.mended.add(block.stripe)

    def _meta(self, block: Block, meta: bytes, sessions: bytes) -> None:
        name = codec.block_field(block)
        self.metas[name], self.sessions[name] = meta, sessions

    def _log(self, key: bytes, write: st.LogWrite) -> None:
        ends = self.logs.get(key)
        if ends is None:
            ends = list(self.state.logs.get(key, ()))
        cut = len(ends)
        while write.cut_to is not None and cut and ends[cut - 1] > write.cut_to:
            cut -= 1
        if cut < len(ends):
            self.commands.append(_keep(key, 0, cut))
            del ends[cut:]
        gone = bisect_right(ends, write.trim_to)
        if gone:
            self.commands.append(_keep(key, gone, len(ends)))
            del ends[:gone]
        if write.append is not None:
            self.commands.append(("RPUSH", key, codec.entry(write.append)))
            ends.append(write.append.to)
        self.logs[key] = ends


def _keep(key: bytes, first: int, end: int) -> cm.Command:
    return ("LTRIM", key, first, end - 1) if first < end else ("DEL", key)


def parity_rows(
    state: ShardState, commits: Iterable[tuple[st.Write, ...]]
) -> dict[Block, set[int]]:
    """The rows of parity blocks that these commits build upon."""
    found: dict[Block, set[int]] = {}
    for writes in commits:
        for write in writes:
            if isinstance(write, st.StripeWrite) and write.rows is not None:
                block = state.parity_block(write.stripe)
                found.setdefault(block, set()).update(write.rows.tolist())
    return found
