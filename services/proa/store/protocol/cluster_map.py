"""Who runs each shard, as the coordinator last said: the unit in which trust is handed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TERM_SHIFT = 20


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard. epoch: of its last grant; up: nobody missed its heartbeats since; disk: what it
    runs on; disk_since: the first epoch of the unbroken row of grants to that disk; trust_since:
    the last epoch at which its parity had to be checked against the owners; nonce: the process."""

    epoch: int = 0
    up: bool = False
    disk: str = ""
    disk_since: int = 0
    trust_since: int = 0
    nonce: int = -1

    def trusts(self, term: int) -> bool:
        """Whether a parity block of this shard in this term may be relied upon."""
        return self.up and term >> TERM_SHIFT >= self.trust_since


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """All shards; `version` grows with every change. stripes: those of all tables; settled: those
    that all shards have had ready, so that they may have been pushed to. A stripe from `settled` on
    is all zero everywhere, whatever was lost."""

    version: int
    shards: Mapping[int, ShardEntry]
    stripes: int = 0
    settled: int = 0


def first_term(epoch: int) -> int:
    """The first term of the parity blocks of a shard that is not trusted at `epoch`."""
    return epoch << TERM_SHIFT
