"""What a run needs of the system under load, be it a model that is served or a store."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proa_chaos.backend import Place
from proa_chaos.blast import Pool
from proa_chaos.measures import Observations, Sample
from proa_chaos.plan import Hit
from proa_chaos.selection import Target


class System(Protocol):
    """The system of one run, and its load."""

    @property
    def subject(self) -> str:
        """What is asked: `model digits`."""
        ...

    @property
    def place(self) -> Place:
        """Where faults are acted out."""
        ...

    @property
    def seen(self) -> Observations:
        """What became of the load; grows all the time, so that guards can look."""
        ...

    async def targets(self) -> list[Target]:
        """Everything that can be hit. Errors: Unavailable."""
        ...

    async def pools(self) -> list[Pool]:
        """What stands in for each other, for the guard."""
        ...

    async def waiting_for(self, *, after: bool) -> list[str]:
        """What is missing of the steady state, each with its reason. `after` the faults: not what
        is meant to stay out for longer than a run."""
        ...

    def asked(self) -> AbstractAsyncContextManager[None]:
        """Within it `load` may be called: clients are connected, right answers known."""
        ...

    async def load(self, phase: str, run_start_s: float) -> None:
        """One phase, from now on. `run_start_s`: loop time of the run's start."""
        ...

    async def phase_over(self, phase: str) -> None:
        """Look at what requests do not show, `phase` being over."""
        ...

    async def recovered(self, notes: list[str]) -> None:
        """All is ready after the faults: look at what they left behind. `notes` gets a line for
        each thing that is worth one."""
        ...

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        """As `ServingBackend.announce`; nothing where nobody watches."""
        ...

    def rate_text(self, phase: str) -> str:
        """The load of `phase`, for the timeline."""
        ...

    def line(self, samples: list[Sample]) -> str:
        """The last second, for the timeline. At least one sample."""
        ...
