"""Tables, and where their rows are in the one layout of a store.

A record is a row's weights and optimiser state, fp32, little-endian, XORed with their initial
values: a row nobody pushed to is all zero and absent everywhere. Tables are only added: their
stripes follow those of the last one and never move.

Ids go round the blocks of one group of stripes, as many as there are shards, and then on to the
next group: small ids, often the popular ones, are on all shards, and yet in few blocks.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest
from proa.store.gf256 import Bytes
from proa.store.initial import Floats, Ids, Initialiser
from proa.store.optimisers import Optimiser, check_gradients, from_json, to_json
from proa.store.placement import ring_of
from proa.store.protocol.layout import Block, Extent, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.rowset import RowSet

NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
ROWS_MAX = 1 << 40
DIM_MAX = 8192
TABLES_MAX = 4096
STRIPES_MAX = 1 << 31
BLOCK_BYTES = 1 << 18  # about the size of a block
WHOLE = 1  # the last byte of a payload that sets a row
BLOCK_ROWS_MIN, BLOCK_ROWS_MAX = 16, 1024


@dataclass(frozen=True, slots=True)
class Table:
    """rows: ids are 0 to rows - 1. Errors: InvalidRequest, which names the field."""

    name: str
    rows: int
    dim: int
    optimiser: Optimiser
    init: Initialiser = field(default_factory=Initialiser)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InvalidRequest(f"name = {self.name!r} is not 1 to 128 of A-Z a-z 0-9 _ . -")
        if not 1 <= self.rows <= ROWS_MAX:
            raise InvalidRequest(f"rows = {self.rows} of table {self.name!r} is not 1 to 2^40")
        if not 1 <= self.dim <= DIM_MAX:
            raise InvalidRequest(f"dim = {self.dim} of table {self.name!r} is not 1 to {DIM_MAX}")

    @property
    def payload(self) -> int:
        """Bytes of a gradient, and of a row's weights."""
        return 4 * self.dim

    @property
    def width(self) -> int:
        """Bytes of a record."""
        return 4 * (self.dim + self.optimiser.state_floats(self.dim))

    def initial_records(self, ids: Ids) -> Bytes:
        """uint8 [ids, width]: weights and state of rows that nobody pushed to."""
        state = self.optimiser.initial_state(self.dim)
        whole = np.empty((len(ids), self.width // 4), np.float32)
        whole[:, : self.dim] = self.init.weights(self.name, ids, self.dim)
        whole[:, self.dim :] = state
        return whole.view(np.uint8)

    def weights(self, ids: Ids, stored: Bytes) -> Floats:
        """float32 [ids, dim] of rows as the store has them: uint8 [ids, width]."""
        initial = self.init.weights(self.name, ids, self.dim).view(np.uint8)
        return (stored[:, : self.payload] ^ initial).view(np.float32)

    def update(self, ids: Ids, stored: Bytes, payload: Bytes) -> Bytes:
        """One step: stored rows and fp32 gradients, uint8 [ids, payload]; the new stored rows. Or
        whole records, as `whole` makes them, which replace what was stored."""
        initial = self.initial_records(ids)
        if payload.shape[1] == self.width + 1:
            return payload[:, :-1] ^ initial
        values = (stored ^ initial).view(np.float32)
        gradients = np.ascontiguousarray(payload).view(np.float32)
        weights, state = self.optimiser.step(
            values[:, : self.dim], values[:, self.dim :], gradients
        )
        whole = np.empty_like(values)
        whole[:, : self.dim], whole[:, self.dim :] = weights, state
        found = whole.view(np.uint8)
        found ^= initial
        return found

    def whole(self, weights: Floats, state: Floats | None) -> Bytes:
        """uint8 [rows, width + 1]: payloads that set rows, bit by bit. state: None: the initial
        one. Errors: InvalidRequest, naming the shape."""
        floats = self.optimiser.state_floats(self.dim)
        if state is None:
            state = np.tile(self.optimiser.initial_state(self.dim), (len(weights), 1))
        for what, found, columns in (("weights", weights, self.dim), ("state", state, floats)):
            if found.shape != (len(weights), columns):
                raise InvalidRequest(
                    f"table {self.name!r}: {what} {list(found.shape)}: not [{len(weights)},"
                    f" {columns}]"
                )
        parts = [np.ascontiguousarray(one, np.float32).view(np.uint8) for one in (weights, state)]
        return np.hstack((*parts, np.full((len(weights), 1), WHOLE, np.uint8)))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "rows": self.rows, "dim": self.dim,
            "optimiser": to_json(self.optimiser), "init": self.init.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Table:
        """Errors: InvalidRequest."""
        try:
            init = Initialiser(**value.get("init", {}))
            optimiser = from_json(value["optimiser"])
            return cls(value["name"], value["rows"], value["dim"], optimiser, init)
        except (KeyError, TypeError) as exc:
            raise InvalidRequest(f"a table's description lacks or has too much: {exc}") from exc


class Located(NamedTuple):
    """Rows of one block, ascending, and where they are in the ids that were asked for."""

    block: Block
    rows: Rows
    where: NDArray[np.intp]


class Placed(NamedTuple):
    """A table and its stripes. group: blocks over which neighbouring ids are spread."""

    table: Table
    extent: Extent
    group: int


@dataclass(frozen=True)
class Catalogue:
    """All tables of a store. domains: the failure domain of each shard; `version` grows with every
    table. Errors: InvalidRequest."""

    k: int
    r: int
    domains: tuple[str, ...]
    tables: tuple[Placed, ...] = ()
    version: int = 0

    @classmethod
    def new(cls, k: int, r: int, domains: Sequence[str]) -> Catalogue:
        """No tables yet. domains: one name per shard; shards of one node or rack share it."""
        found = cls(k, r, tuple(domains))
        assert found.layout.stripes == 0  # k, r and domains fit each other
        return found

    @cached_property
    def layout(self) -> Layout:
        extents = tuple(placed.extent for placed in self.tables)
        Layout(self.k, self.r, len(self.domains))
        return Layout(
            self.k, self.r, len(self.domains), extents, ring_of(self.domains, self.k + self.r)
        )

    @cached_property
    def _by_name(self) -> dict[str, Placed]:
        return {placed.table.name: placed for placed in self.tables}

    @cached_property
    def _firsts(self) -> list[int]:
        return [placed.extent.first for placed in self.tables]

    def add(self, table: Table) -> Catalogue:
        """A catalogue with this table too; the same one if it has it already. Errors:
        InvalidRequest, naming what differs, if it has another one of that name."""
        known = self._by_name.get(table.name)
        if known is not None:
            return self._same(known.table, table)
        if len(self.tables) >= TABLES_MAX:
            raise InvalidRequest(f"there are {TABLES_MAX} tables already")
        first, shards = self.layout.stripes, len(self.domains)
        whole = BLOCK_BYTES // table.width
        spread = -(-table.rows // (self.k * shards))
        rows = min(max(min(whole, spread, BLOCK_ROWS_MAX), BLOCK_ROWS_MIN), table.rows)
        stripes = -(-table.rows // (self.k * rows))
        if first + stripes > STRIPES_MAX:
            raise InvalidRequest(f"rows = {table.rows} of table {table.name!r}: too many stripes")
        extent = Extent(first, stripes, rows, table.width, table.payload)
        placed = Placed(table, extent, self.k * min(shards, stripes))
        return replace(self, tables=(*self.tables, placed), version=self.version + 1)

    def _same(self, known: Table, table: Table) -> Catalogue:
        for name in ("rows", "dim", "optimiser", "init"):
            old, new = getattr(known, name), getattr(table, name)
            if old != new:
                raise InvalidRequest(
                    f"table {table.name!r} exists with {name} = {old}; asked for {new}"
                )
        return self

    def has(self, name: str) -> bool:
        """Whether there is a table of that name."""
        return name in self._by_name

    def table(self, name: str) -> Table:
        """Errors: InvalidRequest."""
        return self._placed(name).table

    def _placed(self, name: str) -> Placed:
        found = self._by_name.get(name)
        if found is None:
            raise InvalidRequest(f"there is no table {name!r}")
        return found

    # --- rows

    def locate(self, name: str, ids: Ids) -> list[Located]:
        """Where these rows are, by block. ids: an array of integers, no two the same. Errors:
        InvalidRequest, naming the id."""
        placed = self._placed(name)
        ids = check_ids(placed.table, ids)
        extent, group = placed.extent, placed.group
        number, within = np.divmod(ids, group * extent.rows)
        size = np.minimum(group, extent.stripes * self.k - number * group)
        row, place = np.divmod(within, size)
        blocks = number * group + place
        order = np.lexsort((row, blocks))
        blocks, row = blocks[order], row[order].astype(np.intp)
        same = blocks[1:] == blocks[:-1]
        if (same & (row[1:] == row[:-1])).any():
            raise InvalidRequest(f"table {name!r}: an id comes twice; sum duplicates first")
        bounds = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
        found = []
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            stripe, position = divmod(int(blocks[begin]), self.k)
            block = Block(extent.first + stripe, position)
            found.append(Located(block, row[begin:end], order[begin:end]))
        return found

    def placed_at(self, stripe: int) -> Placed:
        """The table of a stripe."""
        return self.tables[bisect_right(self._firsts, stripe) - 1]

    def ids(self, block: Block, rows: Rows) -> tuple[Table, Ids]:
        """The table and the ids of rows of a data block. Ids from `table.rows` on are rows that the
        block has beyond the table's end."""
        table, extent, group = self.placed_at(block.stripe)
        number, place = divmod((block.stripe - extent.first) * self.k + block.position, group)
        size = min(group, extent.stripes * self.k - number * group)
        return table, number * group * extent.rows + rows.astype(np.int64) * size + place

    def padding(self, block: Block) -> RowSet:
        """Rows that a data block has beyond its table's end."""
        rows = np.arange(self.layout.extent_of(block.stripe).rows)
        table, ids = self.ids(block, rows)
        return RowSet.of_rows(rows[ids >= table.rows])

    def update(self, block: Block, rows: Rows, old: Bytes, payload: Bytes) -> Bytes:
        """The protocol's `Update`."""
        table, ids = self.ids(block, rows)
        return table.update(ids, old, payload)

    def check(self, block: Block, rows: Rows, payload: Bytes) -> None:
        """What an owner asks of a part of a push before it takes it. Errors: InvalidRequest."""
        if not (block.stripe < self.layout.stripes and block.position < self.k):
            raise InvalidRequest(f"{block} is no data block")
        table, ids = self.ids(block, rows)
        if payload.shape == (len(rows), table.width + 1) and (payload[:, -1] == WHOLE).all():
            check_ids(table, ids)
            return
        if payload.shape != (len(rows), table.payload):
            raise InvalidRequest(
                f"table {table.name!r}: gradients of {payload.shape[1:]} bytes a row are not fp32"
                f" of dim = {table.dim}"
            )
        check_ids(table, ids)
        check_gradients(table.name, ids, np.ascontiguousarray(payload).view(np.float32))

    # --- as a file

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version, "k": self.k, "r": self.r, "domains": list(self.domains),
            "tables": [
                {**p.table.to_json(), "stripes": list(p.extent), "group": p.group}
                for p in self.tables
            ],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Catalogue:
        """Errors: InvalidRequest."""
        try:
            tables = tuple(
                Placed(Table.from_json(one), Extent(*one["stripes"]), one["group"])
                for one in value["tables"]
            )
            domains = tuple(value["domains"])
            return cls(value["k"], value["r"], domains, tables, value["version"])
        except (KeyError, TypeError) as exc:
            raise InvalidRequest(f"not a catalogue of tables: {exc}") from exc


def check_ids(table: Table, ids: NDArray[Any]) -> Ids:
    """int64 ids. Errors: InvalidRequest, naming the first id out of range."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidRequest(
            f"table {table.name!r}: ids are not a vector of integers: {ids.dtype} of {ids.shape}"
        )
    bad = ids[(ids < 0) | (ids >= table.rows)]
    if len(bad):
        raise InvalidRequest(f"table {table.name!r}: id {int(bad[0])} is not 0 to {table.rows - 1}")
    return ids.astype(np.int64)
