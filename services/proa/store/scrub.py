"""Reads every row of a shard once and has repaired what is not as it was written (facts F10).

A row that is touched but absent, or fails its crc, is decoded from the other shards. A parity block
that is not the sum of its data, all of whose rows have a good crc, is collected anew from them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np

from proa.api.v1 import store_pb2
from proa.errors import ShardUnavailable
from proa.store.protocol import actions as ac
from proa.store.protocol.actions import Phase
from proa.store.protocol.agent import Agent
from proa.store.protocol.audit import compare
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows
from proa.store.protocol.pace import Pace
from proa.store.protocol.storage import BlockView, StripeView, View
from proa.store.shell import Shell, Views
from proa.store.tables import Catalogue

TRIES = 20
WRONG_TIMES = 2
RETRY_S = 0.1
REPAIR_S_MAX = 60.0
REPORT_BLOCKS = 64
ROWS_NAMED_MAX = 1024
CRC, PARITY = "crc", "parity"


@dataclass
class _Open:
    """What was found in a block, and is not repaired yet. `agent`: who was told; one that takes its
    place does not know of it."""

    agent: Agent
    block: Block
    rows: int
    crc: bool


@dataclass
class Scrub:
    """One pass over a shard. `found`: told of every row that is not as it should be."""

    shell: Shell
    views: Views
    rows_per_s_max: int
    found: Callable[[int], None] = lambda _rows: None
    progress: store_pb2.ScrubProgress = field(default_factory=store_pb2.ScrubProgress)
    _open: list[_Open] = field(default_factory=list)
    _wrong: Counter[Block] = field(default_factory=Counter)
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.rows_per_s_max)

    async def run(self) -> AsyncIterator[store_pb2.ScrubProgress]:
        """Progress now and then; `done` when everything was read that can be, and repaired as far
        as it could be in a minute. Errors: ShardUnavailable: the agent does not serve."""
        layout = self._agent().layout
        every = [Block(s, p) for s in range(layout.stripes) for p in [self._position(s)]]
        todo = [block for block in every if block.position < layout.k + layout.r]
        later: list[Block] = []
        for number, block in enumerate(todo):
            if block.position < layout.k:
                await self._data(block, await self._rows(block))
            elif not await self._parity(block, await self._rows(block)):
                later.append(block)
            if number % REPORT_BLOCKS == REPORT_BLOCKS - 1:
                yield self._report()
        for _ in range(TRIES):
            if not later:
                break
            yield self._report()
            await asyncio.sleep(RETRY_S)
            later = [b for b in later if not await self._parity(b, await self._rows(b))]
        self.progress.stripes_unread = len(later)
        deadline = asyncio.get_running_loop().time() + REPAIR_S_MAX
        while self._repaired() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(RETRY_S)
        self.progress.done = True
        yield self._report()

    def _report(self) -> store_pb2.ScrubProgress:
        self._repaired()
        report = store_pb2.ScrubProgress()
        report.CopyFrom(self.progress)
        del self.progress.findings[:]
        return report

    # --- reading

    async def _rows(self, block: Block) -> Rows:
        """All of a block, as soon as the pace allows to read them."""
        rows = np.arange(self._agent().layout.extent_of(block.stripe).rows)
        while not self._pace.is_free(asyncio.get_running_loop().time()):  # noqa: ASYNC110  # time
            await asyncio.sleep(RETRY_S / 10)
        self._pace.take(len(rows))
        return rows

    async def _view(self, block: Block, rows: Rows) -> View | None:
        agent = self._agent()
        shard = agent.layout.shard_of(*block)
        entry = agent.map.shards[shard]
        return await self.views.view(shard, entry.disk, block, rows) if entry.up else None

    async def _data(self, block: Block, rows: Rows) -> None:
        for _ in range(TRIES):
            view = await self._view(block, rows)
            if isinstance(view, BlockView):
                self.progress.rows_read += len(rows)
                gone = (view.meta.pending | view.meta.lost).array()
                bad = np.setdiff1d(rows[sorted(view.missing)], gone)
                self._bad(block, bad, CRC)
                return
            if not self._agent().owner.state.blocks[block].version:
                return  # a disk need not know of a block that nobody pushed to
            await asyncio.sleep(RETRY_S)
        raise ShardUnavailable(f"shard {self.shell.shard}: {block} cannot be read")

    async def _parity(self, block: Block, rows: Rows) -> bool:
        """Compare it once. Whether it is twice not the sum is what counts: once it may be the way
        it was read. False: look again later: it is being collected, or data at the versions that
        it includes were not to be had, or it was not the sum for the first time."""
        agent = self._agent()
        if block.stripe in agent.parity.incomplete:
            return False
        view = await self._view(block, rows)
        if not isinstance(view, StripeView):
            return False
        bad = rows[sorted(view.missing)]
        if len(bad):
            self.progress.rows_read += len(rows)
            self._bad(block, bad, CRC)
            return True
        members = {p: await self._view(Block(block.stripe, p), rows) for p in range(agent.layout.k)}
        known = {p: v for p, v in members.items() if isinstance(v, BlockView)}
        wrong = compare(agent.layout, block, view, known, rows)
        if wrong is None:
            return False
        if len(wrong):
            self._wrong[block] += 1
            if self._wrong[block] < WRONG_TIMES:
                return False
        self.progress.rows_read += len(rows)
        self.progress.rows_compared += len(rows)
        self._bad(block, wrong, PARITY)
        return True

    # --- what was found

    def _bad(self, block: Block, rows: Rows, kind: str) -> None:
        if not len(rows):
            return
        finding = self.progress.findings.add(
            kind=kind, shard=self.shell.shard, stripe=block.stripe, position=block.position
        )
        finding.rows.extend(rows[:ROWS_NAMED_MAX].tolist())
        tables = self.shell.tables
        assert isinstance(tables, Catalogue)
        finding.table = tables.placed_at(block.stripe).table.name
        if block.position < self._agent().layout.k:
            finding.ids.extend(tables.ids(block, rows[:ROWS_NAMED_MAX])[1].tolist())
        if kind == CRC:
            self.progress.rows_bad += len(rows)
        else:
            self.progress.stripes_bad += 1
        self.found(len(rows))
        self._open.append(_Open(self._agent(), block, len(rows), kind == CRC))
        self.shell.handle(ac.RowsBad(block, tuple(rows.tolist())))

    def _repaired(self) -> bool:
        """Count what is repaired by now; whether anything is going to be."""
        agent = self.shell.agent
        if agent is None or agent.phase is not Phase.OPEN:
            return bool(self._open)
        own = [one for one in self._open if one.agent is agent]
        for one in [one for one in own if not _is_bad(agent, one.block)]:
            self._open.remove(one)
            if one.crc:
                self.progress.rows_repaired += one.rows
            else:
                self.progress.stripes_repaired += 1
        return any(one.agent is agent for one in self._open)

    def _agent(self) -> Agent:
        agent = self.shell.agent
        if agent is None or agent.phase is not Phase.OPEN:
            raise ShardUnavailable(f"shard {self.shell.shard} does not serve: scrub again later")
        return agent

    def _position(self, stripe: int) -> int:
        return self._agent().layout.position_of(stripe, self.shell.shard)


def _is_bad(agent: Agent, block: Block) -> bool:
    if block.position >= agent.layout.k:
        return block.stripe in agent.parity.incomplete
    owned = agent.owner.state.blocks[block]
    return bool(owned.pending)
