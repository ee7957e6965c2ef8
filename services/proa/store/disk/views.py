"""One atomic read of blocks of any shard: rows, meta, the tail of the logs (facts ecrm C5)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from proa.errors import ShardUnavailable
from proa.store.disk import codec
from proa.store.disk import commands as cm
from proa.store.gf256 import Bytes
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Rows, tail
from proa.store.protocol.records import unpack, unpack_blocks
from proa.store.protocol.storage import BlockMeta, BlockView, StripeMeta, StripeView, View

NOTHING: frozenset[int] = frozenset()


def views(
    layout: Layout, asked: Mapping[Block, Rows], *, logs: bool
) -> cm.Steps[dict[Block, View]]:
    """Views of blocks of one disk, all of the same moment; blocks of which the disk knows nothing
    are left out, and those whose meta fails its crc. Sessions are not read. logs: also what a
    reader needs to go back in time; a read of rows that are all there needs none. Errors:
    ShardUnavailable."""
    found = list(asked)
    commands: list[cm.Command] = [
        ("GET", cm.STAMP),
        ("HMGET", cm.METAS, *(codec.block_field(block) for block in found)),
        *(cm.get_rows(block, asked[block]) for block in found),
    ]
    keys = {block: _logs(layout, block) if logs else {} for block in found}
    commands += [("LRANGE", key, 0, -1) for block in found for key in keys[block].values()]
    replies = yield [("MULTI",), *commands, ("EXEC",)]
    stamp, metas, *rest = executed(replies)
    records, lists = rest[: len(found)], iter(rest[len(found) :])
    result: dict[Block, View] = {}
    widths = (layout.extent_of(block.stripe).width for block in found)
    whole = unpack_blocks([*zip(records, widths, strict=True)])
    for block, meta, rows, data in zip(found, metas, records, whole, strict=True):
        entries = {member: _entries(next(lists), asked[block]) for member in keys[block]}
        if meta is None:
            continue
        # A meta that rotted: the block cannot be read here.
        with suppress(codec.BadDisk):
            known, touched = codec.read_meta(meta)
            if data is None:
                width = layout.extent_of(block.stripe).width
                read = unpack(asked[block], rows, codec.Touched(touched), width)
            else:
                read = data, NOTHING
            result[block] = _view(known, asked[block], read, entries, int(stamp or 0))
    return result


def executed(replies: list[Any]) -> list[Any]:
    """The replies of a transaction that was sent whole. Errors: ShardUnavailable."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise ShardUnavailable(f"the server refused: {reply}") from reply
    done = replies[-1]
    assert isinstance(done, list)
    for reply in done:
        if isinstance(reply, Exception):
            raise ShardUnavailable(f"the server refused: {reply}") from reply
    return done


def _logs(layout: Layout, block: Block) -> dict[int, bytes]:
    """The logs of a block, by the position they come from."""
    if block.position < layout.k:
        return {block.position: cm.outbox_key(block)}
    return {member: cm.undo_key(block, member) for member in range(layout.k)}


def _entries(values: list[bytes], rows: Rows) -> tuple[Entry, ...]:
    """A bad entry is left out: the gap is noticed by who goes back over it."""
    found = (codec.read_entry(value) for value in values)
    return tail([entry for entry in found if entry is not None], rows)


def _view(
    meta: BlockMeta | StripeMeta,
    rows: Rows,
    found: tuple[Bytes, frozenset[int]],
    entries: dict[int, tuple[Entry, ...]],
    stamp: int,
) -> View:
    data, missing = found
    if isinstance(meta, StripeMeta):
        logs = {member: log for member, log in entries.items() if log}
        return StripeView(stamp, meta, data, missing, logs)
    if meta.pending or meta.lost:
        gone = meta.pending | meta.lost
        missing |= {i for i, row in enumerate(rows.tolist()) if row in gone}
    return BlockView(meta, data, missing, next(iter(entries.values()), ()))
