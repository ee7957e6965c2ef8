"""Which block lives where, and how large it is. Placement is explicit (facts ecrm A3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from proa.errors import InvalidRequest
from proa.store import gf256


class Block(NamedTuple):
    """One of the k + r blocks of a stripe: positions below k hold data, the others parity."""

    stripe: int
    position: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Stripes of k data and r parity blocks over `shards` shards.

    A block has `rows` rows of `width` bytes each: weights and optimiser state, XORed with their
    initial values, so that a row nobody touched is all zero. Errors: InvalidRequest.
    """

    k: int
    r: int
    shards: int
    stripes: int
    rows: int
    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= gf256.MEMBERS_MAX:
            raise InvalidRequest(f"k = {self.k} is not 1 to {gf256.MEMBERS_MAX}")
        if not 0 <= self.r <= gf256.PARITY_ROWS_MAX:
            raise InvalidRequest(f"r = {self.r} is not 0 to {gf256.PARITY_ROWS_MAX}")
        if self.shards < self.k + self.r:
            raise InvalidRequest(f"{self.shards} shards cannot hold stripes of {self.k + self.r}")

    def shard_of(self, stripe: int, position: int) -> int:
        """The shard of a block. Consecutive stripes are rotated by one shard, so that every shard
        gets its part of the parity whatever k + r and the number of shards are."""
        return (stripe + position) % self.shards

    def data_of(self, shard: int) -> list[Block]:
        """The data blocks of a shard."""
        return [block for block in self._blocks_of(shard) if block.position < self.k]

    def parity_of(self, shard: int) -> list[Block]:
        """The parity blocks of a shard."""
        return [block for block in self._blocks_of(shard) if block.position >= self.k]

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

    def _blocks_of(self, shard: int) -> list[Block]:
        found = (Block(s, (shard - s) % self.shards) for s in range(self.stripes))
        return [block for block in found if block.position < self.k + self.r]
