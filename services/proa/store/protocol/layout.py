"""Which block lives where, and how large it is. Placement is explicit (facts ecrm A3)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import NamedTuple

from proa.errors import InvalidRequest
from proa.store import gf256


class Block(NamedTuple):
    """One of the k + r blocks of a stripe: positions below k hold data, the others parity."""

    stripe: int
    position: int


class Extent(NamedTuple):
    """Stripes that are alike, `first` and the ones after it: those of one table.

    A block has `rows` rows of `width` bytes each: weights and optimiser state, XORed with their
    initial values, so that a row nobody touched is all zero. `payload`: bytes that a push brings
    for a row.
    """

    first: int
    stripes: int
    rows: int
    width: int
    payload: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Stripes of k data and r parity blocks over `shards` shards.

    ring: the order in which stripes go round the shards; empty: 0, 1, 2, ... Errors:
    InvalidRequest.
    """

    k: int
    r: int
    shards: int
    extents: tuple[Extent, ...] = ()
    ring: tuple[int, ...] = ()
    _place: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _firsts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= gf256.MEMBERS_MAX:
            raise InvalidRequest(f"k = {self.k} is not 1 to {gf256.MEMBERS_MAX}")
        if not 0 <= self.r <= gf256.PARITY_ROWS_MAX:
            raise InvalidRequest(f"r = {self.r} is not 0 to {gf256.PARITY_ROWS_MAX}")
        if self.shards < self.k + self.r:
            raise InvalidRequest(f"{self.shards} shards cannot hold stripes of {self.k + self.r}")
        ring = self.ring or tuple(range(self.shards))
        if sorted(ring) != list(range(self.shards)):
            raise InvalidRequest(f"ring = {ring} does not name each of {self.shards} shards once")
        place = dict(zip(ring, range(self.shards), strict=True))
        firsts, end = [], 0
        for extent in self.extents:
            assert extent.first == end, "stripes of a new table follow those of the last one"
            firsts.append(extent.first)
            end += extent.stripes
        object.__setattr__(self, "ring", ring)
        object.__setattr__(self, "_place", tuple(place[s] for s in range(self.shards)))
        object.__setattr__(self, "_firsts", tuple(firsts))

    @classmethod
    def uniform(cls, *, k: int, r: int, shards: int, stripes: int, rows: int, width: int) -> Layout:
        """One extent whose pushes bring whole rows."""
        return cls(k, r, shards, (Extent(0, stripes, rows, width, width),))

    @property
    def stripes(self) -> int:
        """How many there are."""
        return self.extents[-1].first + self.extents[-1].stripes if self.extents else 0

    def extent_of(self, stripe: int) -> Extent:
        """The sizes of a stripe's blocks."""
        return self.extents[bisect_right(self._firsts, stripe) - 1]

    def shard_of(self, stripe: int, position: int) -> int:
        """The shard of a block."""
        return self.ring[(self._start(stripe) + position) % self.shards]

    def position_of(self, stripe: int, shard: int) -> int:
        """The position that a shard has in a stripe; k + r and more: none."""
        return (self._place[shard] - self._start(stripe)) % self.shards

    def _start(self, stripe: int) -> int:
        """Parity walks round the ring without a gap, so that no shard ever has two parity blocks
        more than another. Where r divides the ring, data would always begin at the same shards:
        every round begins one further."""
        return stripe * self.r + stripe // (self.shards // gcd(self.r, self.shards))

    def data_of(self, shard: int, first: int = 0) -> list[Block]:
        """The data blocks of a shard, from stripe `first` on."""
        return [block for block in self._blocks_of(shard, first) if block.position < self.k]

    def parity_of(self, shard: int, first: int = 0) -> list[Block]:
        """The parity blocks of a shard, from stripe `first` on."""
        return [block for block in self._blocks_of(shard, first) if block.position >= self.k]

    def parity_positions(self) -> range:
        """Where a stripe has its parity blocks."""
        return range(self.k, self.k + self.r)

    def coefficient(self, parity: int, member: int) -> int:
        """g_ji: the factor of data block `member` in the parity block at position `parity`."""
        return gf256.coefficient(parity - self.k, member)

    def parity_shards_of(self, shard: int) -> frozenset[int]:
        """The shards with a parity block of a stripe that has a data block on `shard`."""
        return frozenset(
            self.shard_of(block.stripe, position)
            for block in self.data_of(shard)
            for position in self.parity_positions()
        )

    def _blocks_of(self, shard: int, first: int) -> Iterator[Block]:
        for stripe in range(first, self.stripes):
            position = self.position_of(stripe, shard)
            if position < self.k + self.r:
                yield Block(stripe, position)
