"""What the parts of one owner share: its data blocks and the peers that hold their parity."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Action, Phase
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.journal import Journal
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import NO_SESSIONS, Entry, Sessions
from proa.store.protocol.rowset import NO_ROWS, RowSet
from proa.store.protocol.storage import BlockMeta, ShardImage

# Rows of a block that nobody can push to: all zero, whatever was lost.
Padding = Callable[[Block], RowSet]


@dataclass(slots=True)
class Peer:
    """A parity block that the owner waits for. base: version with which it joined; acked: on its
    disk; sent: the next entry begins here."""

    term: int
    base: int
    acked: int
    sent: int
    sent_at: float


@dataclass(slots=True)
class Waiting:
    """A push that was taken. sender: who asked last; `blocks`: where it has still to be written, or
    parity to follow."""

    push: ms.Push
    sender: Hashable
    blocks: int


@dataclass(slots=True)
class Owned:
    """A data block. version: of the last commit given to the disk; durable: on the disk.
    hold_until: acknowledge nothing before. remake: parity that must start again, as it cannot
    follow any more: its term, by position."""

    block: Block
    epoch: int = -1
    version: int = -1
    durable: int = -1
    sessions: Sessions = NO_SESSIONS
    pending: RowSet = NO_ROWS
    lost: RowSet = NO_ROWS
    outbox: deque[Entry] = field(default_factory=deque)
    peers: dict[int, Peer] = field(default_factory=dict)
    waiting: list[tuple[int, Waiting]] = field(default_factory=list)
    wanted: RowSet = NO_ROWS
    snapshots: int = 0
    tries: int = 0
    hold_until: float = 0.0
    remake: dict[int, int] = field(default_factory=dict)

    def meta(self) -> BlockMeta:
        """What the disk keeps of it."""
        return BlockMeta(self.epoch, self.version, self.sessions, self.pending, self.lost)

    def watermark(self) -> int:
        """The last version that every parity block has (I3): what is safe from r losses."""
        if not self.peers:
            return self.durable
        return min([peer.acked for peer in self.peers.values()])

    def trim(self) -> int:
        """Forget entries that nobody can need; the version up to which they are gone."""
        if self.snapshots:
            return -1
        mark = min(self.watermark(), self.durable)
        while self.outbox and self.outbox[0].to <= mark:
            self.outbox.popleft()
        return mark


class OwnerState:
    """The data of one owner. Its parts add to `out`; the shell performs it. `busy`: blocks whose
    parity is behind, or may be."""

    def __init__(
        self,
        layout: Layout,
        shard: int,
        config: StoreConfig,
        image: ShardImage,
        journal: Journal,
        out: list[Action],
    ) -> None:
        self.layout = layout
        self.shard = shard
        self.config = config
        self.journal = journal
        self.out = out
        self.padding: Padding = lambda _block: NO_ROWS
        self.phase = Phase.CLOSED
        self.epoch = 0
        self.open_at = 0.0
        self.map = ClusterMap(0, {})
        self.blocks = {block: self._load(block, image) for block in layout.data_of(shard)}
        self.busy: dict[Block, Owned] = {}
        self.parity_shards = layout.parity_shards_of(shard)
        self._pending = {b: owned for b, owned in self.blocks.items() if owned.pending}

    def _load(self, block: Block, image: ShardImage) -> Owned:
        found = image.blocks.get(block)
        if found is None:
            return Owned(block)
        meta = found.meta
        return Owned(
            block,
            meta.epoch,
            meta.version,
            meta.version,
            meta.sessions,
            meta.pending,
            meta.lost,
            deque(found.outbox),
        )

    def extend(self, layout: Layout) -> list[Owned]:
        """Take over a layout with more stripes; the blocks that are new, all zero."""
        more = layout.data_of(self.shard, self.layout.stripes)
        self.layout = layout
        found = [Owned(block, epoch=0, version=0, durable=0) for block in more]
        self.blocks.update((owned.block, owned) for owned in found)
        self.parity_shards = layout.parity_shards_of(self.shard)
        return found

    def decode(self, block: Block, rows: RowSet) -> None:
        """These rows are not what was written: they must come from others."""
        owned = self.blocks[block]
        owned.pending |= rows
        self._pending[block] = owned

    def pending(self) -> list[Owned]:
        """The blocks with rows to decode."""
        for block in [b for b, owned in self._pending.items() if not owned.pending]:
            del self._pending[block]
        return list(self._pending.values())

    def next_pending(self, count: int, busy: Container[Block]) -> list[Owned]:
        """At most `count` blocks with rows to decode, none of `busy`; other ones the next time."""
        idle = (owned for owned in self.pending() if owned.block not in busy)
        chosen = list(islice(idle, max(0, count)))
        for owned in chosen:
            self._pending[owned.block] = self._pending.pop(owned.block)
        return chosen

    def ahead(self) -> dict[Block, int]:
        """The versions, as they are now, of blocks whose parity is behind."""
        return self.still_ahead({block: owned.version for block, owned in self.busy.items()})

    def still_ahead(self, versions: Mapping[Block, int]) -> dict[Block, int]:
        """Those of these versions that a parity block does not have yet."""
        return {b: v for b, v in versions.items() if self.blocks[b].watermark() < v}

    def is_open(self, now: float) -> bool:
        """Whether pushes may be taken."""
        return self.phase is Phase.OPEN and now >= self.open_at
