"""One atomic read of blocks of any shard: rows, meta, the tail of the logs (facts ecrm C5)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from proa.errors import ShardUnavailable
from proa.store.disk import codec
from proa.store.disk import commands as cm
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Rows, tail
from proa.store.protocol.records import unpack
from proa.store.protocol.storage import BlockMeta, BlockView, StripeMeta, StripeView, View


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
    for block, meta, rows in zip(found, metas, records, strict=True):
        entries = {member: _entries(next(lists), asked[block]) for member in keys[block]}
        if meta is not None:
            # A meta that rotted: the block cannot be read here.
            with suppress(codec.BadDisk):
                result[block] = _view(
                    layout, block, asked[block], meta, rows, entries, int(stamp or 0)
                )
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
    layout: Layout,
    block: Block,
    rows: Rows,
    value: bytes,
    records: list[bytes | None],
    entries: dict[int, tuple[Entry, ...]],
    stamp: int,
) -> View:
    meta, touched = codec.read_meta(value)
    width = layout.extent_of(block.stripe).width
    data, missing = unpack(rows, records, codec.Touched(touched), width)
    if isinstance(meta, StripeMeta):
        logs = {member: log for member, log in entries.items() if log}
        return StripeView(stamp, meta, data, missing, logs)
    assert isinstance(meta, BlockMeta)
    gone = meta.pending | meta.lost
    if gone:
        missing |= {i for i, row in enumerate(rows.tolist()) if row in gone}
    return BlockView(meta, data, missing, entries.get(block.position, ()))
