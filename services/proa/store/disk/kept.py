"""Records of parity rows as this process wrote them last: they need not be read to be built upon.

Nobody else writes to a disk whose owner we are, so they are what the disk has. They are taken out
while a transaction is under way: one of which it is not known whether it was executed leaves none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from proa.store.protocol.layout import Block

KEPT_BYTES_MAX = 32 << 20
RECORD_BYTES = 150  # what Python needs beside a record's own bytes


class Kept:
    """At most so many bytes of them; the blocks that were not used for the longest time go."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._blocks: OrderedDict[Block, dict[int, bytes]] = OrderedDict()
        self.bytes = 0

    def take(self, block: Block, rows: AbstractSet[int]) -> dict[int, bytes]:
        """Those of these rows that are kept; they are kept no longer."""
        known = self._blocks.get(block)
        if known is None:
            return {}
        found = {row: known.pop(row) for row in rows & known.keys()}
        self.bytes -= _size(found)
        return found

    def put(self, block: Block, records: Mapping[int, bytes]) -> None:
        """The disk has these rows."""
        known = self._blocks.setdefault(block, {})
        self.bytes += _size(records) - _size({r: known[r] for r in records.keys() & known.keys()})
        known.update(records)
        self._blocks.move_to_end(block)
        while self.bytes > self._bytes_max:
            _, gone = self._blocks.popitem(last=False)
            self.bytes -= _size(gone)

    def forget(self, block: Block) -> None:
        """The block was emptied."""
        self.bytes -= _size(self._blocks.pop(block, {}))


def _size(records: Mapping[int, bytes]) -> int:
    return sum(map(len, records.values())) + RECORD_BYTES * len(records)
