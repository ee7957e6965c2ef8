"""Decoding rows from what other shards hold, without any lock (facts ecrm C5, degraded read).

Parity blocks are read first, each with its version vector; then the other members, each with its
outbox. Data leads (I2), so every member can be taken back to the version that a parity block
includes: XOR is its own inverse. A block that is lost too is one more unknown; where parity blocks
include different versions of it, their undo rings take them back to the oldest of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from proa.store import gf256
from proa.store.gf256 import Bytes
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Rows, between
from proa.store.protocol.storage import BlockView, StripeView, View


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """data: uint8 [found rows, width], the block's `rows` as of (epoch, version). lost: rows for
    which everybody answered and it was not enough. Rows in neither: ask again later."""

    rows: Rows
    data: Bytes
    epoch: int
    version: int
    lost: tuple[int, ...] = ()


class _Moved(Exception):
    """The views do not fit together: something was trimmed or replaced between the reads."""


@dataclass(slots=True)
class Gather:
    """One decode of `rows` (ascending) of `block`, whose owner cannot be asked or asks itself."""

    layout: Layout
    map: ClusterMap
    block: Block
    rows: Rows
    _asked: set[int] = field(default_factory=set)
    _parity: dict[int, StripeView] = field(default_factory=dict)
    _members: dict[int, BlockView] = field(default_factory=dict)
    _silent: bool = False

    def start(self) -> list[Block]:
        """The blocks to read first; `take` every answer. Nothing: it is hopeless for now."""
        self._asked = set(self._reachable(list(self.layout.parity_positions())))
        return [Block(self.block.stripe, p) for p in sorted(self._asked)]

    def take(self, block: Block, view: View | None) -> tuple[list[Block], Verdict | None]:
        """One answer came (None: no answer): further blocks to read, or the verdict."""
        self._asked.discard(block.position)
        self._keep(block.position, view)
        if self._asked:
            return [], None
        if block.position >= self.layout.k:
            others = [p for p in range(self.layout.k) if p != self.block.position]
            self._asked = set(self._reachable(others)) if self._parity else set()
            if self._asked:
                return [Block(self.block.stripe, p) for p in sorted(self._asked)], None
        return [], self._verdict()

    def _reachable(self, positions: list[int]) -> list[int]:
        up = [p for p in positions if self._entry_up(p)]
        self._silent |= len(up) < len(positions)
        return up

    def _entry_up(self, position: int) -> bool:
        return self.map.shards[self.layout.shard_of(self.block.stripe, position)].up

    def _keep(self, position: int, view: View | None) -> None:
        """Note a view, if it comes from the shard as the map has it."""
        entry = self.map.shards[self.layout.shard_of(self.block.stripe, position)]
        if isinstance(view, BlockView) and view.meta.epoch == entry.epoch:
            self._members[position] = view
        elif isinstance(view, StripeView) and view.stamp == entry.epoch:
            vector = view.meta.vector
            whole = len(vector) == self.layout.k and all(a.joined for a in vector.values())
            if whole and entry.trusts(view.meta.term):
                self._parity[position] = view
        else:
            self._silent = True

    # --- the arithmetic

    def _verdict(self) -> Verdict:
        """Rows that lack the same blocks are decoded together."""
        patterns: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        lost: list[int] = []
        others = [p for p in range(self.layout.k) if p != self.block.position]
        for index in range(len(self.rows)):
            erased = tuple(
                p for p in others
                if p not in self._members or index in self._members[p].missing
            )  # fmt: skip
            usable = tuple(p for p, v in self._parity.items() if index not in v.missing)
            if len(usable) > len(erased):
                key = (self.block.position, *erased), usable[: len(erased) + 1]
                patterns.setdefault(key, []).append(index)
            elif not self._silent:
                lost.append(int(self.rows[index]))
        return self._solve(patterns, tuple(lost))

    def _solve(
        self,
        patterns: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]],
        lost: tuple[int, ...],
    ) -> Verdict:
        width = self.layout.extent_of(self.block.stripe).width
        data = np.zeros((len(self.rows), width), np.uint8)
        found = np.zeros(len(self.rows), bool)
        epoch, version = -1, -1
        for (unknown, usable), where in patterns.items():
            index = np.array(where, np.intp)
            try:
                at = self._common(self.block.position, usable)
                if version >= 0 and at != (epoch, version):
                    continue  # the caller gets one version; the others come next time
                values = self._values(unknown, usable, index)
            except _Moved:
                continue
            epoch, version = at
            data[index] = values
            found[index] = True
        return Verdict(self.rows[found], data[found], epoch, version, lost)

    def _common(self, member: int, usable: tuple[int, ...]) -> tuple[int, int]:
        """The oldest version of `member` that one of these parity blocks includes."""
        applied = [self._parity[p].meta.vector[member] for p in usable]
        if len({a.epoch for a in applied}) > 1:
            raise _Moved
        return applied[0].epoch, min(a.version for a in applied)

    def _values(self, unknown: tuple[int, ...], usable: tuple[int, ...], index: Rows) -> Bytes:
        common = {member: self._common(member, usable)[1] for member in unknown}
        sums = []
        for position in usable:
            total = self._parity[position].data[index]
            for member in range(self.layout.k):
                part = (
                    self._undone(position, member, common[member], index)
                    if member in common
                    else self._as_included(position, member, index)
                )
                total = total ^ gf256.scaled(self.layout.coefficient(position, member), part)
            sums.append(total)
        matrix = [[self.layout.coefficient(p, m) for m in unknown] for p in usable]
        return gf256.solve(matrix, sums)[0]

    def _undone(self, position: int, member: int, version: int, index: Rows) -> Bytes:
        """What takes the part of an unknown member in a parity block back to `version`."""
        view = self._parity[position]
        log = view.logs.get(member, ())
        return self._change(log, version, view.meta.vector[member].version, index)

    def _as_included(self, position: int, member: int, index: Rows) -> Bytes:
        """A member's rows as of the version that a parity block includes."""
        included = self._parity[position].meta.vector[member]
        view = self._members[member]
        if included.epoch != view.meta.epoch or included.version > view.meta.version:
            raise _Moved
        change = self._change(view.log, included.version, view.meta.version, index)
        return view.data[index] ^ change

    def _change(self, log: tuple[Entry, ...], start: int, to: int, index: Rows) -> Bytes:
        width = self.layout.extent_of(self.block.stripe).width
        change = between(log, start, to, self.rows[index], width)
        if change is None:
            raise _Moved
        return change
