"""Snapshots of a store's tables as files, and stores from snapshots.

`snapshot.json` names the tables and their files with a SHA-256 each; it is written last, so that a
snapshot that was not finished is none. A file has rows of one table that somebody pushed to, `ids`
int64 and `weights`, `state` float32 (numpy's npz); all others have their initial values, which the
description of the table gives. Nothing depends on n, k or r.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from proa.errors import InvalidRequest
from proa.store.gf256 import Bytes
from proa.store.initial import Floats, Ids
from proa.store.places import Place
from proa.store.tables import Table

MANIFEST = "snapshot.json"
NOT_SEALED = f"{MANIFEST}.new"
FORMAT = 1
FILE_ROWS = 1 << 16
PULL_ROWS = 4096


class Source(Protocol):
    """What is written: see `client.StoreClient`."""

    async def stored(self, name: str, ids: Ids, lost: set[int] | None = None) -> Bytes: ...


class Target(Source, Protocol):
    """What is restored."""

    async def create_table(self, table: Table) -> None: ...
    async def set_rows(
        self, name: str, ids: Ids, weights: Floats, state: Floats | None
    ) -> None: ...


class Progress(NamedTuple):
    """So far. rows: looked at; written: put into files, or into the store."""

    rows: int
    written: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """A file of a snapshot: rows of ids from `first` on."""

    name: str
    first: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """`tables`: each with its files. store: the name of the one it is of."""

    place: Place
    store: str
    tables: Sequence[tuple[Table, Mapping[int, Part]]] = field(default_factory=tuple)

    @classmethod
    def read(cls, place: Place) -> Snapshot:
        """Errors: those of `place`; InvalidRequest: there is none, or it is of another format."""
        path = f"{place.shown}/{MANIFEST}"
        try:
            content = place.get(MANIFEST)
        except InvalidRequest as exc:
            raise InvalidRequest(f"{exc}: not a whole snapshot") from exc
        try:
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise InvalidRequest(f"{path}: format {found['format']}, not {FORMAT}")
            tables = [
                (Table.from_json(one), {part["first"]: Part(**part) for part in one["files"]})
                for one in found["tables"]
            ]
            return cls(place, found["store"], tables)
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidRequest(f"{path}: not the index of a snapshot: {exc}") from exc

    def stored(self, table: Table, part: Part) -> tuple[Ids, Bytes]:
        """Ids of a file, and their records as a store has them. Errors: InvalidRequest: the file
        is not what was written."""
        content = self.place.get(part.name)
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise InvalidRequest(
                f"{self.place.shown}/{part.name}: its SHA-256 is not the one in {MANIFEST}"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            ids, whole = found["ids"], table.whole(found["weights"], found["state"])
        return ids, whole[:, :-1] ^ table.initial_records(ids)


async def write(
    source: Source, tables: Sequence[Table], store: str, place: Place
) -> AsyncIterator[Progress]:
    """Write all rows of these tables; call `seal` when nothing was pushed meanwhile."""
    rows = written = size = 0
    index: list[dict[str, Any]] = []
    for number, table in enumerate(tables):
        files: list[dict[str, Any]] = []
        for first in range(0, table.rows, FILE_ROWS):
            end = min(first + FILE_ROWS, table.rows)
            ids, stored = await _touched(source, table, first, end)
            rows += end - first
            if len(ids):
                name = f"{number:04}-{first // FILE_ROWS:08}.npz"
                content = await asyncio.to_thread(_pack, table, ids, stored)
                await asyncio.to_thread(place.put, name, content)
                sha256 = hashlib.sha256(content).hexdigest()
                files.append({"name": name, "first": first, "rows": len(ids), "sha256": sha256})
                written, size = written + len(ids), size + len(content)
            yield Progress(rows, written, size)
        index.append({**table.to_json(), "files": files})
    content = json.dumps({"format": FORMAT, "store": store, "tables": index}, indent=1).encode()
    await asyncio.to_thread(place.put, NOT_SEALED, content)


def seal(place: Place) -> None:
    """From here on it is a snapshot."""
    place.move(NOT_SEALED, MANIFEST)


async def _touched(source: Source, table: Table, first: int, end: int) -> tuple[Ids, Bytes]:
    found: list[tuple[Ids, Bytes]] = []
    for begin in range(first, end, PULL_ROWS):
        ids = np.arange(begin, min(begin + PULL_ROWS, end))
        stored = await source.stored(table.name, ids)
        touched = stored.any(axis=1)
        found.append((ids[touched], stored[touched]))
    return np.concatenate([i for i, _ in found]), np.concatenate([s for _, s in found])


def _pack(table: Table, ids: Ids, stored: Bytes) -> bytes:
    values = (stored ^ table.initial_records(ids)).view(np.float32)
    file = io.BytesIO()
    np.savez(file, ids=ids, weights=values[:, : table.dim], state=values[:, table.dim :])
    return file.getvalue()


async def restore(
    target: Target, snapshot: Snapshot, *, only_lost: bool = False
) -> AsyncIterator[Progress]:
    """Bring the tables of a store, which may have others too, to what the snapshot has; they are
    created where there are none. Rows that are right already are left alone. only_lost: all that
    are not lost are. Errors: InvalidRequest (a table of that name that differs, a bad file)."""
    rows = written = size = 0
    for table, files in snapshot.tables:
        await target.create_table(table)
        for first in range(0, table.rows, FILE_ROWS):
            end = min(first + FILE_ROWS, table.rows)
            wanted = np.zeros((end - first, table.width), np.uint8)
            if first in files:
                ids, stored = await asyncio.to_thread(snapshot.stored, table, files[first])
                wanted[ids - first] = stored
            for begin in range(first, end, PULL_ROWS):
                some = np.arange(begin, min(begin + PULL_ROWS, end))
                changed = await _set(target, table, some, wanted[some - first], only_lost)
                written, size = written + changed, size + changed * table.width
            rows += end - first
            yield Progress(rows, written, size)


async def _set(target: Target, table: Table, ids: Ids, wanted: Bytes, only_lost: bool) -> int:
    lost: set[int] = set()
    now = await target.stored(table.name, ids, lost)
    change = np.isin(ids, np.array(sorted(lost), np.int64))
    if not only_lost:
        change |= (now != wanted).any(axis=1)
    if change.any():
        values = (wanted[change] ^ table.initial_records(ids[change])).view(np.float32)
        weights, state = values[:, : table.dim], values[:, table.dim :]
        await target.set_rows(table.name, ids[change], weights, state)
    return int(change.sum())
