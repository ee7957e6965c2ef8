"""What the shell performs, in the order given, and the events that tell how it went.

Every event is handled with the time at which it happened, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum

from proa.store.gf256 import Bytes
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.messages import Message
from proa.store.protocol.rowset import NO_ROWS, RowSet
from proa.store.protocol.storage import View, Write

# Per block its rows, uint8 [rows, width], and the indices of those that are erasures.
Found = Mapping[Block, tuple[Bytes, frozenset[int]]]

COORDINATOR = "coordinator"


# --- actions


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message`. to: a shard's number, COORDINATOR, or the sender of a Received."""

    to: Hashable
    message: Message


@dataclass(frozen=True, slots=True)
class Commit:
    """Write all of it at once to the shard's disk; report Committed or CommitFailed. Performed in
    the order given: a later Fetch or Commit sees it."""

    ticket: int
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Read rows of own data blocks; report Fetched."""

    ticket: int
    rows: Mapping[Block, Rows]


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Read rows of a block of another shard straight from its disk `disk`, all in one MULTI with
    its meta and log; report ReadDone, with None if it cannot be reached or is another disk."""

    ticket: int
    shard: int
    disk: str
    block: Block
    rows: Rows


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep the coordinator's state before anything that follows is done."""

    map: ClusterMap


@dataclass(frozen=True, slots=True)
class Grow:
    """The store has `stripes` stripes: find the layout that says where they are; report Extended.
    Asked for again until then."""

    stripes: int


@dataclass(frozen=True, slots=True)
class Restart:
    """This agent was deposed: forget it and start another one from the disk."""

    why: str


class Phase(Enum):
    """Where an agent stands; for status, metrics and logs."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator may want to see: a metric, a log line, a line of progress."""

    kind: str
    block: Block | None = None
    rows: RowSet = NO_ROWS


Action = Send | Commit | Fetch | Read | Persist | Grow | Restart | Note


# --- events


@dataclass(frozen=True, slots=True)
class Received:
    """A message came. `sender`: an address to answer to."""

    sender: Hashable
    message: Message


@dataclass(frozen=True, slots=True)
class Committed:
    """A Commit is on the disk."""

    ticket: int


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """A Commit was refused and wrote nothing. `stripes`: parity blocks with a row that is absent or
    fails its crc; the disk takes no further writes to them but one that resets them. None: the disk
    is full or gone."""

    ticket: int
    stripes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """Rows of a Fetch, per block with the indices (into the rows asked for) of those missing."""

    ticket: int
    found: Found


@dataclass(frozen=True, slots=True, eq=False)
class ReadDone:
    """The answer to a Read."""

    ticket: int
    view: View | None


@dataclass(frozen=True, slots=True)
class RowsBad:
    """A scrubber or a reader found rows of a block of this shard that are touched but absent, or
    fail their crc. They are decoded or encoded anew from what others have (F10)."""

    block: Block
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Paced:
    """For `lease_s`, no more rows are swept in a second than this; 0: as the agent is set."""

    rows_per_s_max: int
    lease_s: float


@dataclass(frozen=True, slots=True)
class Extended:
    """Tables were added: the layout that the agent has, and stripes after its last one."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Ticked:
    """Some time has passed: resend what is due. Sent at least every `tick_s`."""


Event = (
    Received | Committed | CommitFailed | Fetched | ReadDone | RowsBad | Paced | Extended | Ticked
)
