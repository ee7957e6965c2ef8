"""One parity block in memory, and where it includes what."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry
from proa.store.protocol.storage import Applied, StripeMeta


@dataclass(slots=True)
class Coded:
    """One parity block. `durable`: versions on the disk, by position of the data block; `emptied`:
    the disk knows that it starts again."""

    stripe: int
    position: int
    term: int
    vector: dict[int, Applied] = field(default_factory=dict)
    undo: dict[int, deque[Entry]] = field(default_factory=dict)
    durable: dict[int, int] = field(default_factory=dict)
    emptied: bool = True

    def meta(self) -> StripeMeta:
        """What the disk keeps of it."""
        return StripeMeta(self.term, dict(self.vector))

    def is_whole(self, k: int) -> bool:
        """Whether all k members are included and their owners wait for it."""
        return len(self.vector) == k and all(a.joined for a in self.vector.values())


class Place(NamedTuple):
    """What a parity block includes of one data block: of the one at position `member`."""

    coded: Coded
    member: int


def held_of(places: Iterable[Place]) -> dict[tuple[Block, int], tuple[int, Applied]]:
    """What they include, as Fenced and Adopted say it."""
    return {
        (Block(coded.stripe, member), coded.position): (coded.term, coded.vector[member])
        for coded, member in places
        if member in coded.vector
    }
