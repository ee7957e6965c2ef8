"""How a client reads rows: from their disk, or decoded from what others hold (facts ecrm C5).

It never takes a lock, and never answers with anything but what an owner wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from proa.store.gf256 import Bytes
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.gather import Gather
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.storage import BlockView, View


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of a block as of one (epoch, version): data uint8 [rows, width]."""

    rows: Rows
    data: Bytes
    epoch: int
    version: int
    degraded: bool


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """`lost`: rows that nothing can bring back (DataLost). `later`: rows that could not be read
    now: refresh the map and ask again (ShardUnavailable). Both empty: the pieces have all rows."""

    pieces: tuple[Piece, ...]
    lost: tuple[int, ...] = ()
    later: tuple[int, ...] = ()


@dataclass(slots=True)
class RowRead:
    """One read of `rows` (ascending) of `block`. The caller checks the age of the map before it
    starts: one older than `map_ttl_s` may name a disk that was replaced."""

    layout: Layout
    map: ClusterMap
    block: Block
    rows: Rows
    _gather: Gather | None = None
    _pieces: list[Piece] = field(default_factory=list)
    _lost: tuple[int, ...] = ()
    _epoch: int = -1

    @property
    def asked(self) -> Rows:
        """The rows to read of the blocks that `start` and `take` name."""
        return self.rows if self._gather is None else self._gather.rows

    def start(self) -> tuple[list[Block], Answer | None]:
        """The blocks to read first, or the answer; `take` every view."""
        entry = self.map.shards[self.layout.shard_of(*self.block)]
        if entry.up:
            self._epoch = entry.epoch
            return [self.block], None
        return self._degraded(self.rows)

    def take(self, block: Block, view: View | None) -> tuple[list[Block], Answer | None]:
        """One view came (None: no answer): further blocks to read, or the answer."""
        if block == self.block:
            return self._direct(view)
        assert self._gather is not None
        further, verdict = self._gather.take(block, view)
        if verdict is None:
            return further, None
        if len(verdict.rows):
            self._pieces.append(
                Piece(verdict.rows, verdict.data, verdict.epoch, verdict.version, degraded=True)
            )
        found = set(verdict.rows.tolist())
        return [], self._answer([row for row in self._gather.rows.tolist() if row not in found])

    def _direct(self, view: View | None) -> tuple[list[Block], Answer | None]:
        if not isinstance(view, BlockView) or view.meta.epoch != self._epoch:
            return self._degraded(self.rows)
        meta = view.meta
        if not view.missing and not meta.lost:  # nearly always
            self._pieces.append(
                Piece(self.rows, view.data, meta.epoch, meta.version, degraded=False)
            )
            return [], self._answer([])
        self._lost = tuple(row for row in self.rows.tolist() if row in meta.lost)
        good = np.array([i not in view.missing for i in range(len(self.rows))], bool)
        if good.any():
            rows, data = self.rows[good], view.data[good]
            self._pieces.append(Piece(rows, data, meta.epoch, meta.version, degraded=False))
        rest = [row for row in self.rows[~good].tolist() if row not in meta.lost]
        if rest:
            return self._degraded(np.array(rest, np.intp))
        return [], self._answer([])

    def _degraded(self, rows: Rows) -> tuple[list[Block], Answer | None]:
        self._gather = Gather(self.layout, self.map, self.block, rows)
        asked = self._gather.start()
        return (asked, None) if asked else ([], self._answer(rows.tolist()))

    def _answer(self, later: list[int]) -> Answer:
        return Answer(tuple(self._pieces), self._lost, tuple(later))
