"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Pause = Callable[[float], Awaitable[None]]
RETRY_AFTER_S_MAX = 120.0  # a server may not put us to sleep for longer


@dataclass
class Retry:
    """Doubling waits from `first_s` to `most_s`, each shortened by up to half at random: clients
    that lost a server together must not come back together."""

    first_s: float = 0.2
    most_s: float = 30.0
    dice: random.Random = field(default_factory=random.Random)
    _tries: int = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The next wait; `at_least_s`: what the server asked for (Retry-After)."""
        grown = min(self.most_s, self.first_s * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return max(min(at_least_s, RETRY_AFTER_S_MAX), grown * (1 - self.dice.random() / 2))

    def reset(self) -> None:
        """It worked: start small again."""
        self._tries = 0
