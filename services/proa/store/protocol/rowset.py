"""Sets of rows of one block, as the bits of an integer: 1,024 rows in about 160 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.store.protocol.log import Rows


class RowSet(Set[int]):
    """Immutable. Equal to any other set of the same rows."""

    __slots__ = ("bits",)

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits

    @classmethod
    def of(cls, rows: Iterable[int]) -> RowSet:
        """The set of these rows, 0 and more."""
        if isinstance(rows, RowSet):
            return rows
        bits = 0
        for row in rows:
            bits |= 1 << row
        return cls(bits)

    @classmethod
    def of_rows(cls, rows: Rows) -> RowSet:
        """The same from an array."""
        if not len(rows):
            return NO_ROWS
        found = np.zeros(int(rows.max()) + 1, np.bool_)
        found[rows] = True
        return cls.of_bits(found)

    @classmethod
    def of_bits(cls, bits: NDArray[np.bool_]) -> RowSet:
        """From a bitmap."""
        return cls(int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little"))

    @classmethod
    def every(cls, count: int) -> RowSet:
        """0 to count - 1."""
        return cls((1 << count) - 1)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> RowSet:  # type: ignore[override]
        return cls.of(it)

    def array(self) -> Rows:
        """Ascending indices."""
        size = (self.bits.bit_length() + 7) // 8
        raw = np.frombuffer(self.bits.to_bytes(size, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(raw, bitorder="little"))

    def packed(self, count: int) -> bytes:
        """A bitmap of `count` rows, eight to a byte, the first in the lowest bit."""
        return self.bits.to_bytes((count + 7) // 8, "little")

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and row >= 0 and bool(self.bits >> row & 1)

    def __iter__(self) -> Iterator[int]:
        return iter(self.array().tolist())

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return bool(self.bits)

    def __eq__(self, other: object) -> bool:
        return self.bits == other.bits if isinstance(other, RowSet) else super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash()

    def __or__(self, other: Set[Any]) -> RowSet:
        return RowSet(self.bits | RowSet.of(other).bits)

    def __and__(self, other: Iterable[Any]) -> RowSet:
        return RowSet(self.bits & RowSet.of(other).bits)

    def __sub__(self, other: Set[Any]) -> RowSet:
        return RowSet(self.bits & ~RowSet.of(other).bits)

    def __repr__(self) -> str:
        return f"RowSet({list(self)})"


NO_ROWS = RowSet()
