"""What a run needs of the place where the system is: one protocol for each kind of system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proa.api.v1.store_pb2 import StoreReport
from proa_chaos.blast import Pool
from proa_chaos.plan import Hit
from proa_chaos.selection import Target


class Place(Protocol):
    """This machine, or a namespace of a cluster, as far as faults are concerned.

    A fault that was injected ends by itself after its time to live, where it acts, whatever becomes
    of the runner and of the backend.
    """

    @property
    def name(self) -> str:
        """For the journal: `local`."""
        ...

    @property
    def address(self) -> str:
        """Where clients connect: the frontend, or the store's coordinator."""
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

    async def close(self) -> None:
        """Let go of connections and helpers; what they still hold ends."""
        ...


class ServingBackend(Place, Protocol):
    """A place where models are served: `proa up`, or a release."""

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

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        """Tell who watches the system that `hit` acts for `ttl_s` from now; 0: no more.

        Takes a second at most, and raises nothing: it is for watchers only.
        """
        ...


class StoreBackend(Place, Protocol):
    """A place where a store runs: `proa store up`, or a release with one."""

    async def targets(self, report: StoreReport) -> list[Target]:
        """Everything that can be hit. `report`: of the coordinator, which knows the failure domain
        of each shard; one target of the role `shard` for every shard, in their order.

        Errors: Unavailable.
        """
        ...

    async def waiting_for(self) -> list[str]:
        """Processes or pods that are not ready, each with its reason."""
        ...
