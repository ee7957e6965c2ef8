"""Reading rows of many blocks at once: straight from their disks, decoded where that fails.

One exchange per shard and round: rows of live shards need one round, rows of dead ones two more,
for the parity and for the other members (see `protocol.reading`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.reading import Answer, RowRead
from proa.store.protocol.storage import View


class Views(Protocol):
    """Disks of all shards: see `redis_disk.RedisViews`."""

    async def views(
        self, shard: int, disk: str, asked: Mapping[Block, Rows], *, logs: bool = True
    ) -> dict[Block, View] | None: ...


# What a read asks for: a block of its own, of the parity or of another member, and its rows.
_Asked = tuple[RowRead, Block]


async def read_rows(
    layout: Layout, told: ClusterMap, asked: Mapping[Block, Rows], views: Views
) -> dict[Block, Answer]:
    """The rows (ascending) of each block, or why not. `told` must not be older than its time to
    live when this begins."""
    answers: dict[Block, Answer] = {}
    todo: list[_Asked] = []

    def go_on(read: RowRead, further: list[Block], answer: Answer | None) -> None:
        todo.extend((read, block) for block in further)
        if answer is not None:
            answers[read.block] = answer

    for block, rows in asked.items():
        read = RowRead(layout, told, block, rows)
        go_on(read, *read.start())
    while todo:
        batch, todo[:] = _distinct(todo)
        for read, block, view in await _views(layout, told, batch, views):
            go_on(read, *read.take(block, view))
    return answers


def _distinct(todo: list[_Asked]) -> tuple[list[_Asked], list[_Asked]]:
    """No block twice in one exchange: two reads may want other rows of it."""
    seen: set[Block] = set()
    now: list[_Asked] = []
    later: list[_Asked] = []
    for item in todo:
        (later if item[1] in seen else now).append(item)
        seen.add(item[1])
    return now, later


async def _views(
    layout: Layout, told: ClusterMap, batch: list[_Asked], views: Views
) -> list[tuple[RowRead, Block, View | None]]:
    # Logs are for going back in time, which rows that are all there do not need.
    groups: dict[tuple[int, bool], list[_Asked]] = {}
    for read, block in batch:
        key = layout.shard_of(*block), block != read.block
        groups.setdefault(key, []).append((read, block))

    async def one(
        shard: int, logs: bool, some: list[_Asked]
    ) -> list[tuple[RowRead, Block, View | None]]:
        rows = {block: read.asked for read, block in some}
        found = await views.views(shard, told.shards[shard].disk, rows, logs=logs) or {}
        return [(read, block, found.get(block)) for read, block in some]

    results = await asyncio.gather(
        *(one(shard, logs, some) for (shard, logs), some in groups.items())
    )
    return [item for result in results for item in result]
