"""Recently answered queries, kept to fill groups that traffic alone would leave partial."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable

PER_KEY_MAX = 32


class Reservoir:
    """Query ids by key, newest last, bounded in bytes and per key. It never holds tensors."""

    def __init__(self, *, bytes_max: int) -> None:
        self._by_key: dict[Hashable, deque[tuple[int, int]]] = {}
        self._bytes_max = bytes_max
        self.bytes = 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._by_key.values())

    def add(self, key: Hashable, query: int, size: int) -> list[int]:
        """Keep `query`; the ids that had to leave for it (itself, if it is too large)."""
        if size > self._bytes_max:
            return [query]
        # The key used last moves to the end, so the key unused longest is evicted first.
        entries = self._by_key.pop(key, None) or deque()
        self._by_key[key] = entries
        entries.append((query, size))
        self.bytes += size
        left: list[int] = []
        if len(entries) > PER_KEY_MAX:
            left.append(self._evict(key))
        while self.bytes > self._bytes_max:
            left.append(self._evict(next(iter(self._by_key))))
        return left

    def take(self, key: Hashable, count: int, *, exclude: Collection[int] = ()) -> tuple[int, ...]:
        """`count` ids of `key` not in `exclude`, newest first; none if there are not enough."""
        entries = self._by_key.get(key, deque())
        found = [query for query, _ in reversed(entries) if query not in exclude][:count]
        return tuple(found) if len(found) == count else ()

    def _evict(self, key: Hashable) -> int:
        query, size = self._by_key[key].popleft()
        self.bytes -= size
        if not self._by_key[key]:
            del self._by_key[key]
        return query
