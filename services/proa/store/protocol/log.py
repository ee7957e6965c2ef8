"""What a block remembers of its latest changes: deltas, and which pushes they came from.

The outbox of a data block and the undo ring of a parity block hold the same entries. XOR is its own
inverse: the same delta leads from a version to the next one and back (facts ecrm C5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proa.store.gf256 import Bytes

Rows = NDArray[np.intp]
FORGET = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """A push of `worker` is in this version. `floor`: the worker knows that all its pushes with
    smaller step were acknowledged, so that nobody will ask about them again. `step` FORGET: from
    this version on, the block forgets the worker (see `heard`)."""

    worker: int
    step: int
    floor: int


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """The change of a block from version `start` to version `to`.

    rows: distinct, ascending indices of rows; delta: uint8 [rows, width], old XOR new.
    """

    start: int
    to: int
    rows: Rows
    delta: Bytes
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Sessions:
    """Which pushes a block includes: per worker a floor and the steps from there on (F2)."""

    workers: Mapping[int, tuple[int, frozenset[int]]]

    def includes(self, worker: int, step: int) -> bool:
        """Whether the push is part of the block already."""
        floor, steps = self.workers.get(worker, (0, frozenset()))
        return step < floor or step in steps

    def add(self, marks: Iterable[Mark]) -> Sessions:
        """These sessions and the pushes of `marks`."""
        workers = dict(self.workers)
        for mark in marks:
            if mark.step == FORGET:
                workers.pop(mark.worker, None)
                continue
            floor, steps = workers.get(mark.worker, (0, frozenset()))
            floor = max(floor, mark.floor)
            kept = frozenset(s for s in (*steps, mark.step) if s >= floor)
            workers[mark.worker] = (floor, kept)
        return Sessions(workers)

    def remove(self, marks: Iterable[Mark]) -> Sessions:
        """These sessions without the pushes of `marks`, which are being undone. A floor stays: what
        is below it was acknowledged, and what was acknowledged is never undone. Workers that were
        forgotten stay so."""
        workers = dict(self.workers)
        for mark in marks:
            if mark.worker in workers:
                floor, steps = workers[mark.worker]
                workers[mark.worker] = (floor, steps - {mark.step})
        return Sessions(workers)


NO_SESSIONS = Sessions({})


def _locate(rows: Rows, wanted: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Where each of `wanted` is in `rows`, both ascending, and whether it is there at all."""
    where = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    return where, rows[where] == wanted


def tail(entries: Iterable[Entry], rows: Rows) -> tuple[Entry, ...]:
    """The entries reduced to `rows` (marks left out): what a reader needs to go back in time."""
    found = []
    for entry in entries:
        _, chosen = _locate(rows, entry.rows)
        found.append(Entry(entry.start, entry.to, entry.rows[chosen], entry.delta[chosen]))
    return tuple(found)


def between(entries: Iterable[Entry], start: int, to: int, rows: Rows, width: int) -> Bytes | None:
    """The change of `rows` (ascending) from version `start` to `to`: uint8 [rows, width].

    None: the entries do not reach that far.
    """
    total = np.zeros((len(rows), width), np.uint8)
    at = start
    for entry in entries:
        if entry.start < start or entry.to > to:
            continue
        if entry.start != at:
            return None
        at = entry.to
        where, known = _locate(rows, entry.rows)
        total[where[known]] ^= entry.delta[known]
    return total if at == to else None
