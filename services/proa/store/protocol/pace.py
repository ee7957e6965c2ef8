"""How fast a shard is made whole again, so that those who work with it are not starved."""

from __future__ import annotations

BURST_S = 0.25


class Pace:
    """`rows_per_s_max`: 0: no limit. For a while it may be another one (`lease`)."""

    def __init__(self, rows_per_s_max: int) -> None:
        self._usual = rows_per_s_max
        self._leased, self._until = 0, float("-inf")
        self._left, self._at = 0.0, float("-inf")

    def lease(self, rows_per_s_max: int, until: float) -> None:
        """Another limit until then; 0: the usual one."""
        self._leased, self._until = rows_per_s_max, until

    def limit(self, now: float) -> int:
        """Rows per second; 0: none."""
        return self._leased if self._leased and now < self._until else self._usual

    def is_free(self, now: float) -> bool:
        """Whether more rows may be begun now."""
        limit = self.limit(now)
        if not limit:
            self._left, self._at = 0.0, now
            return True
        passed_s = min(now - self._at, BURST_S)
        self._left = min(self._left + limit * passed_s, limit * BURST_S)
        self._at = now
        return self._left > 0

    def take(self, rows: int) -> None:
        """So many were begun; a block may be more than what was left."""
        self._left -= rows
