"""What processes of the store say to each other. Any of it may be lost, doubled, late or reordered.

Facts ecrm C5: Push is W1, Delta is W3, Ack and PushDone are W4; Fence to Adopted are recovery (1)
to (4); Join to Mismatch are re-encoding, recovery (6) and F5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from proa.store.gf256 import Bytes
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry, Rows, Sessions
from proa.store.protocol.storage import Applied

# --- worker and owner


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one block that a push changes. rows: distinct, ascending; payload: one row each,
    handed to the update function. Payloads one byte longer than a record set the row, whatever it
    was, also a lost one."""

    block: Block
    rows: Rows
    payload: Bytes


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """Step `step` of `worker` for the blocks of one shard. `floor`: every smaller step of this
    worker was acknowledged. The same push may be sent again until it is answered."""

    worker: int
    step: int
    floor: int
    epoch: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PushDone:
    """All parity blocks hold it: it survives any r losses."""

    worker: int
    step: int


class Refusal(Enum):
    """Why a push was refused whole; nothing of it was written by this call."""

    NOT_OWNER = "FAILED_PRECONDITION"
    STALE_MAP = "ABORTED"
    OVERLOADED = "RESOURCE_EXHAUSTED"
    OUT_OF_MEMORY = "RESOURCE_EXHAUSTED, memory"  # of this shard, or of one with its parity
    INVALID = "INVALID_ARGUMENT"
    DATA_LOST = "DATA_LOSS"


@dataclass(frozen=True, slots=True)
class PushRefused:
    """`lost`: the rows that a DATA_LOST is about."""

    worker: int
    step: int
    why: Refusal
    lost: tuple[tuple[Block, int], ...] = ()


# --- owner and parity


@dataclass(frozen=True, slots=True)
class Delta:
    """Entry of the outbox of `block`, for the parity block at `position` in its `term`."""

    block: Block
    position: int
    term: int
    epoch: int
    entry: Entry
    watermark: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The parity block holds `version` of `block` on its disk. `gap`: it got a later one and needs
    what comes between."""

    block: Block
    position: int
    term: int
    epoch: int
    version: int
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Shard `source` has a later owner than `epoch`."""

    source: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Fence:
    """A new owner of shard `source`: take nothing from earlier ones, and say what you hold.
    `part`: of the answer, which comes in as many as it takes."""

    source: int
    epoch: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class Fenced:
    """The entries for the blocks of `source`, by block and position of the parity block, with its
    term; `stamp`: epoch of the answering shard; `more`: there are further parts."""

    shard: int
    source: int
    epoch: int
    stamp: int
    held: Mapping[tuple[Block, int], tuple[int, Applied]]
    part: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go back to these versions where you are beyond them, and follow the owner of `epoch`."""

    source: int
    epoch: int
    versions: Mapping[tuple[Block, int], tuple[int, int]]  # (term, version)
    part: int = 0


@dataclass(frozen=True, slots=True)
class Adopted:
    """What the parity blocks of `shard` that part `part` named hold now."""

    shard: int
    source: int
    epoch: int
    held: Mapping[tuple[Block, int], tuple[int, Applied]]
    part: int = 0


@dataclass(frozen=True, slots=True)
class Join:
    """A parity block wants to include `block`. `have`: (epoch, version) that it includes already,
    though it cannot know whether that is still right; None: nothing."""

    block: Block
    position: int
    term: int
    have: tuple[int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything of a block at `version`, the watermark: later entries follow as deltas."""

    block: Block
    position: int
    term: int
    epoch: int
    version: int
    rows: Rows
    data: Bytes
    sessions: Sessions


@dataclass(frozen=True, slots=True)
class Joined:
    """What the parity block has of `block` is right; the owner waits for it from now on."""

    block: Block
    position: int
    term: int
    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What the parity block has of `block` is not part of its history, or too old: start again."""

    block: Block
    position: int
    term: int


# --- coordinator


@dataclass(frozen=True, slots=True)
class Hello:
    """Process `nonce` wants to run `shard` on `disk`, last stamped with epoch `stamp`."""

    shard: int
    nonce: int
    disk: str
    stamp: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Run the shard under `epoch`. `first`: it never ran before; `fresh`: this disk has all that
    owners of the shard ever wrote; `trusted`: so has its parity; `wait_s`: take no pushes for so
    long, for clients may still read disks that are no longer kept up to date."""

    shard: int
    nonce: int
    epoch: int
    first: bool
    fresh: bool
    trusted: bool
    wait_s: float
    map: ClusterMap


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process that was granted `epoch` is alive, and knows the map of this version. `ready`:
    so many stripes are served here, with parity that includes all it should; 0: not yet."""

    shard: int
    epoch: int
    map_version: int
    ready: int = 0


@dataclass(frozen=True, slots=True)
class MapAsked:
    """`asked_s`: the asker's clock, sent back: a map is as old as the question."""

    asked_s: float


@dataclass(frozen=True, slots=True)
class MapTold:
    """The map; None `asked_s`: it changed and nobody asked."""

    map: ClusterMap
    asked_s: float | None = None


Message = (
    Push | PushDone | PushRefused
    | Delta | Ack | Refused | Fence | Fenced | Adopt | Adopted
    | Join | Snapshot | Joined | Mismatch
    | Hello | Grant | Heartbeat | MapAsked | MapTold
)  # fmt: skip
