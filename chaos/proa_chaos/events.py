"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened `at_s` seconds into the run.

    kind: waiting, phase, load, fault, end, guard, recovery, probe, verdict.
    """

    at_s: float
    kind: str
    text: str


Tell = Callable[[Event], None]


def tell_nobody(_event: Event) -> None:
    """For a run that nobody watches."""
