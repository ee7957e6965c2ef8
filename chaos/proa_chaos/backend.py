"""What a runner needs of the place where the system runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proa_chaos.blast import Pool
from proa_chaos.plan import Hit
from proa_chaos.selection import Target


class Backend(Protocol):
    """One place: `proa up` on this machine, later a namespace of a cluster.

    A fault that was injected ends by itself after its time to live, where it acts, whatever becomes
    of the runner and of the backend.
    """

    @property
    def name(self) -> str:
        """For the journal: `local`."""
        ...

    @property
    def address(self) -> str:
        """Where clients connect."""
        ...

    async def targets(self, model: str) -> list[Target]:
        """Everything that can be hit, with the workers of `model`. Errors: Unavailable."""
        ...

    async def pools(self, model: str) -> list[Pool]:
        """What stands in for each other, for the guard."""
        ...

    async def waiting_for(self, model: str) -> list[str]:
        """What is not ready, each with its reason; empty in the steady state."""
        ...

    async def quarantined(self, model: str) -> list[str]:
        """The lines of `waiting_for` that are of workers in quarantine: out on purpose."""
        ...

    async def prepare(self, hits: Sequence[Hit]) -> None:
        """Do what would delay the injections. Errors: NotSupported for what cannot be done here."""
        ...

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        """Let the fault act, for `ttl_s` at most (0: do it once). Errors: of the place."""
        ...

    async def end(self, hit: Hit) -> None:
        """End it now. Ending what has ended is no error."""
        ...

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        """Tell who watches the system that `hit` acts for `ttl_s` from now; 0: no more.

        Takes a second at most, and raises nothing: it is for watchers only.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and helpers; what they still hold ends."""
        ...
