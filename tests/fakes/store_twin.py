"""A simulated disk beside a real one: both are told the same and must show the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from fakes.store_books import Violation
from fakes.store_disk import Disk
from fakes.store_world import World
from fakes.valkey import SyncLink, Valkey
from proa.store.disk.commands import METAS, rows_key
from proa.store.disk.shard_disk import ShardDisk
from proa.store.disk.views import views
from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import NO_SESSIONS, Rows

DATABASES = 512
_nonces = count(1)


class Bench:
    """One server; every disk is one of its databases."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self._database = 0
        self.links: list[SyncLink] = []

    def link(self, database: int) -> SyncLink:
        link = SyncLink(self.valkey, database)
        self.links.append(link)
        return link

    def database(self) -> int:
        self._database += 1
        assert self._database < DATABASES
        return self._database

    def close(self) -> None:
        for link in self.links:
            link.close()


class TwinDisk(Disk):
    """Raises Violation where the two differ."""

    def __init__(self, name: str, layout: Layout, bench: Bench) -> None:
        super().__init__(name, layout)
        self.bench = bench
        self.database = bench.database()
        self._own, self._others = bench.link(self.database), bench.link(self.database)
        self._real: ShardDisk | None = None

    def copy(self, name: str) -> TwinDisk:
        plain = super().copy(name)
        other = TwinDisk(name, self.layout, self.bench)
        for field in ("stamp", "fences", "metas", "shelves", "outboxes", "undo"):
            setattr(other, field, getattr(plain, field))
        with self.bench.valkey.client(self.database) as client:
            for key in client.keys():  # noqa: SIM118
                client.copy(key, key, destination_db=other.database)
        return other

    def image(self, shard: int) -> st.ShardImage:
        self._real = ShardDisk(shard, next(_nonces))
        found = self._own.run(self._real.image(self.layout))
        expected = super().image(shard)
        same(replace(found, disk=expected.disk), expected)
        return expected

    def commit(self, shard: int, writes: tuple[st.Write, ...]) -> tuple[int, ...]:
        assert self._real is not None
        self._real.extend(self.layout)
        found = self._own.run(self._real.commit(writes)) or ()
        same(found, expected := super().commit(shard, writes))
        return expected

    def fetch(self, block: Block, rows: Rows) -> tuple[np.ndarray, frozenset[int]]:
        expected = super().fetch(block, rows)
        if self._real is not None:
            self._real.extend(self.layout)
            same(self._own.run(self._real.fetch({block: rows}))[block], expected)
        return expected

    def view(self, block: Block, rows: Rows) -> st.View | None:
        expected = super().view(block, rows)
        found = self._others.run(views(self.layout, {block: rows}, logs=True)).get(block)
        same(found, without_sessions(expected))
        return expected

    def flip(self, block: Block, row: int) -> None:
        super().flip(block, row)
        if self._real is not None:
            # What it wrote itself it would write again, and so mend the row.
            self._real.state.kept.forget(block)
        field = row.to_bytes(4, "little")
        with self.bench.valkey.client(self.database) as client:
            client.hset(rows_key(block), field, self.shelf(block).records[row])
            assert client.exists(METAS)


class TwinWorld(World):
    """Its disks are twins."""

    def __init__(self, seed: int, bench: Bench, **options: Any) -> None:
        self.bench = bench
        super().__init__(seed, **options)

    def make_disk(self, name: str) -> Disk:
        return TwinDisk(name, self.layout, self.bench)


def without_sessions(view: st.View | None) -> st.View | None:
    """A view as readers get it."""
    if isinstance(view, st.BlockView):
        return replace(view, meta=replace(view.meta, sessions=NO_SESSIONS))
    if isinstance(view, st.StripeView):
        vector = {i: replace(a, sessions=NO_SESSIONS) for i, a in view.meta.vector.items()}
        logs = {i: log for i, log in view.logs.items() if log}
        return replace(view, meta=replace(view.meta, vector=vector), logs=logs)
    return None


def same(found: Any, expected: Any) -> None:
    """Raises Violation unless they are equal to the last byte."""
    if plain(found) != plain(expected):
        raise Violation(f"the real disk shows\n{found}\ninstead of\n{expected}")


def plain(value: Any) -> Any:
    """Arrays as lists, dataclasses as tuples, empty logs left out: what `==` can compare."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one != ()}
    if hasattr(value, "__dataclass_fields__"):
        return type(value), [plain(getattr(value, name)) for name in value.__dataclass_fields__]
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    return value
