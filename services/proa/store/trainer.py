"""Trains rows and knows what each of them must be, bit by bit: drills and experiments use it.

A trainer has its rows to itself, and a copy of them. It pulls some, which must be its copy, steps
along their gradient, and applies the same step to the copy once that was acknowledged. So a row
that lost a step, got one twice, or was decoded to anything else is noticed at the next pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from proa.errors import DataLost
from proa.store.client import StoreClient
from proa.store.gf256 import Bytes
from proa.store.initial import Floats, Ids
from proa.store.pushing import WORKER_BITS
from proa.store.tables import Table

_CHUNK = 4096


@dataclass
class Compared:
    """Rows compared with the copy; how many of them differed; how many were named as lost."""

    rows: int = 0
    wrong: int = 0
    lost: int = 0


@dataclass(frozen=True)
class _Step:
    """Sent, and not acknowledged yet. `mine`: places in `ids`."""

    mine: Ids
    gradients: Floats


@dataclass
class Trainer:
    """`ids` of `table`, `batch` of them a step, drawn from `seed`. Nobody else may push to them.

    `lost`: ids that the store has named as lost; they are not trained any more.
    """

    table: Table
    ids: Ids
    batch: int
    seed: Sequence[int]
    lost: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.copy: Bytes = np.zeros((len(self.ids), self.table.width), np.uint8)
        self._random = np.random.default_rng(list(self.seed))
        self._worker, self._number = secrets.randbits(WORKER_BITS), 0
        self._open: _Step | None = None
        # Of a step that some shards took and one refused as lost: what else a row may be.
        self._or: dict[int, Bytes] = {}
        self._lock = asyncio.Lock()
        self._compared = Compared()

    def compared(self) -> Compared:
        """What was found since the last call."""
        found, self._compared = self._compared, Compared()
        return found

    async def begin(self, client: StoreClient) -> int:
        """Copy what the store has, and push once to every row, so that it is stored. Returns how
        many were lost; they start with their initial values.

        Errors: as `StoreClient.pull` and `push`.
        """
        for some in self._chunks():
            # Lost rows are zero in the copy: their initial values.
            self.copy[some] = await client.stored(self.table.name, self.ids[some], self.lost)
        lost = len(self.lost)
        await self.restore(client)
        for some in self._chunks():
            await self._begin_step(client, some)
            await self._settle(client)
        return lost

    async def step(self, client: StoreClient) -> None:
        """Pull, compare, push, acknowledged; or, after an error, the same push again.

        Errors: those of `StoreClient.pull` and `push`. DataLost: its ids are in `lost` afterwards.
        """
        async with self._lock:
            if self._open is None:
                await self._begin_step(client, self._choice())
            await self._settle(client)

    async def _begin_step(self, client: StoreClient, mine: Ids) -> None:
        with self._naming():
            weights = await client.pull(self.table.name, self.ids[mine])
        self._compare(mine, weights)
        goal = np.float32(self._random.standard_normal())
        self._open = _Step(mine, weights - goal)

    async def check(self, client: StoreClient) -> None:
        """All rows, weights and optimiser state. Errors: as `step`, but for DataLost."""
        async with self._lock:
            if self._open is not None:
                with contextlib.suppress(DataLost):  # it has its names in `lost`
                    await self._settle(client)
            for some in self._chunks():
                lost: set[int] = set()
                found = await client.stored(self.table.name, self.ids[some], lost)
                self._name(lost)
                for place in self._or.keys() & set(some.tolist()):
                    record = self._or.pop(place)
                    if (found[place - some[0]] == record).all():
                        self.copy[place] = record
                here = ~np.isin(self.ids[some], list(self.lost))
                self._count(found[here], self.copy[some][here])

    async def restore(self, client: StoreClient) -> None:
        """Lost rows become what the copy has. Errors: as `StoreClient.set_rows`."""
        async with self._lock:
            places = np.flatnonzero(np.isin(self.ids, list(self.lost)))
            for first in range(0, len(places), _CHUNK):
                some = places[first : first + _CHUNK]
                ids = self.ids[some]
                values = (self.copy[some] ^ self.table.initial_records(ids)).view(np.float32)
                weights, state = values[:, : self.table.dim], values[:, self.table.dim :]
                await client.set_rows(self.table.name, ids, weights, state)
            self.lost.clear()

    def _chunks(self) -> list[Ids]:
        return [
            np.arange(first, min(first + _CHUNK, len(self.ids)))
            for first in range(0, len(self.ids), _CHUNK)
        ]

    def _choice(self) -> Ids:
        here = np.arange(len(self.ids))
        if self.lost:
            here = here[~np.isin(self.ids, list(self.lost))]
        if not len(here):
            raise DataLost(f"table {self.table.name!r}: all rows are lost", table=self.table.name)
        return self._random.choice(here, min(self.batch, len(here)), replace=False)

    def _compare(self, mine: Ids, weights: Floats) -> None:
        for number, place in enumerate(mine.tolist()):
            if place in self._or:
                record = self._or[place]
                other = self.table.weights(self.ids[place : place + 1], record[None])
                if weights[number].tobytes() == other.tobytes():
                    self.copy[place] = record
                del self._or[place]
        self._count(weights, self.table.weights(self.ids[mine], self.copy[mine]))

    async def _settle(self, client: StoreClient) -> None:
        """Send the open step until it is acknowledged, or refused for good."""
        step = self._open
        assert step is not None
        ids = self.ids[step.mine]
        gradients = {self.table.name: (ids, step.gradients)}
        try:
            with self._naming():
                await client.push_as(self._worker, self._number, self._number, gradients, None)
        except DataLost:
            # Each shard took its part, or refused it whole: the rows it is about tell.
            after = self._after(step)
            self._or |= {
                place: record
                for place, record in zip(step.mine.tolist(), after, strict=True)
                if int(self.ids[place]) not in self.lost
            }
            self._close()
            raise
        self.copy[step.mine] = self._after(step)
        self._close()

    def _close(self) -> None:
        self._open = None
        self._number += 1

    def _after(self, step: _Step) -> Bytes:
        payload = np.ascontiguousarray(step.gradients).view(np.uint8)
        return self.table.update(self.ids[step.mine], self.copy[step.mine], payload)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except DataLost as exc:
            self._name(set(exc.ids))
            raise

    def _name(self, ids: set[int]) -> None:
        self._compared.lost += len(ids - self.lost)
        self.lost |= ids

    def _count(self, found: Bytes | Floats, want: Bytes | Floats) -> None:
        same = (found.view(np.uint8) == want.view(np.uint8)).all(axis=1)
        self._compared.rows += len(same)
        self._compared.wrong += int((~same).sum())
