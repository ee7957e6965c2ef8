"""What a shard's disk holds, what is written to it at once, and what one atomic read shows.

"Disk" is the shard's Redis or Valkey. The protocol decides, the adapter obeys: it performs Fetch
and Commit in the order given, each Commit as one MULTI (facts ecrm C2, C5 W2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proa.store.gf256 import Bytes
from proa.store.protocol.layout import Block
from proa.store.protocol.log import NO_SESSIONS, Entry, Rows, Sessions
from proa.store.protocol.rowset import NO_ROWS, RowSet


@dataclass(frozen=True, slots=True)
class BlockMeta:
    """A data block: its owner's epoch, its version, the pushes that it includes. `pending`: rows
    that a new owner has still to decode; `lost`: rows that nothing can bring back. The adapter
    keeps the touched bitmap and a crc per row beside it, written in the same MULTI."""

    epoch: int
    version: int
    sessions: Sessions = NO_SESSIONS
    pending: RowSet = NO_ROWS
    lost: RowSet = NO_ROWS


@dataclass(frozen=True, slots=True)
class Applied:
    """What a parity block includes of one data block: an entry a_j[i] of its version vector.
    `joined`: the owner waits for this parity block before it acknowledges (invariant I3)."""

    epoch: int
    version: int
    joined: bool
    sessions: Sessions = NO_SESSIONS


@dataclass(frozen=True, slots=True)
class StripeMeta:
    """A parity block. `term`: names one life of its content; grows when the block starts again
    from nothing, or can no longer be trusted. vector: by position of the data block."""

    term: int
    vector: Mapping[int, Applied]


# --- writes


@dataclass(frozen=True, slots=True)
class LogWrite:
    """Change a log: drop what ends above `cut_to` and what ends at or below `trim_to`; append."""

    append: Entry | None = None
    trim_to: int = -1
    cut_to: int | None = None


NO_LOG = LogWrite()


@dataclass(frozen=True, slots=True)
class BlockWrite:
    """Set rows of a data block, its meta and its outbox. `reset`: drop all rows and the outbox
    first. Rows given become touched, whatever they hold."""

    block: Block
    meta: BlockMeta
    rows: Rows | None = None
    data: Bytes | None = None
    log: LogWrite = NO_LOG
    reset: bool = False


@dataclass(frozen=True, slots=True)
class StripeWrite:
    """XOR `delta` into rows of a parity block, set its meta, change the undo ring of `source`.
    `reset`: drop all rows and undo rings first. If a row that must be there is absent or fails its
    crc, nothing is written and the adapter reports CommitFailed."""

    stripe: int
    meta: StripeMeta
    rows: Rows | None = None
    delta: Bytes | None = None
    source: int = -1
    undo: LogWrite = NO_LOG
    reset: bool = False


@dataclass(frozen=True, slots=True)
class FenceWrite:
    """From now on this disk takes nothing from owners of shard `source` before `epoch`."""

    source: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StampWrite:
    """The shard runs under `epoch`."""

    epoch: int


Write = BlockWrite | StripeWrite | FenceWrite | StampWrite


# --- what an agent finds when it starts


@dataclass(frozen=True, slots=True)
class BlockImage:
    """A data block without its rows."""

    meta: BlockMeta
    outbox: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class StripeImage:
    """A parity block without its rows; undo: by position of the data block, oldest first."""

    meta: StripeMeta
    undo: Mapping[int, tuple[Entry, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardImage:
    """A disk without its rows. `disk` names one life of its memory: it changes with every start of
    the server (Redis: run_id), so a disk loaded from a file never has the name of the old one."""

    disk: str
    stamp: int = 0
    fences: Mapping[int, int] = field(default_factory=dict)
    blocks: Mapping[Block, BlockImage] = field(default_factory=dict)
    stripes: Mapping[int, StripeImage] = field(default_factory=dict)


# --- one atomic read


@dataclass(frozen=True, slots=True)
class BlockView:
    """Rows of a data block: data uint8 [rows, width]. `missing`: indices into `rows` of those that
    are pending, touched but absent, or fail their crc: erasures, never initial values. `log`: the
    outbox reduced to `rows`, and the version where it begins."""

    meta: BlockMeta
    data: Bytes
    missing: frozenset[int]
    log: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class StripeView:
    """Rows of a parity block, as BlockView. `stamp`: the epoch its shard runs under; logs: the undo
    rings reduced to `rows`, by position."""

    stamp: int
    meta: StripeMeta
    data: Bytes
    missing: frozenset[int]
    logs: Mapping[int, tuple[Entry, ...]]


View = BlockView | StripeView
