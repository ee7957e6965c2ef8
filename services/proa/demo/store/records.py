"""One row per arm of the store demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proa.demo.store.arms import Played
from proa.demo.store.plan import Plan


@dataclass(frozen=True)
class Run:
    """Times in seconds of the wall clock.

    loss_first, loss_last: means over the first and last tenth of the steps. recovery_s: from the
    kill to full redundancy; with a checkpoint until training is where it was at the kill. stall_s:
    the longest time without a new step. down_s, reload_s, replay_s: the parts of a restart.
    same_bytes, same_losses: as in the run without a failure.
    """

    arm: str
    label: str
    r: int
    steps: int
    steps_trained: int
    loss_first: float
    loss_last: float
    train_s: float
    examples_per_s: float
    killed_s: float | None
    recovery_s: float | None
    stall_s: float
    lost_steps: int
    checkpoint_s: float
    down_s: float
    reload_s: float
    replay_s: float
    checkpoint_bytes: int
    same_bytes: bool
    same_losses: bool
    sha256: str


@dataclass(frozen=True)
class Story:
    """The runs, and what they were made from."""

    runs: tuple[Run, ...]
    played: tuple[Played, ...]
    plan: Plan
    facts: Mapping[str, Any]

    def run(self, arm: str) -> Run | None:
        return next((run for run in self.runs if run.arm == arm), None)
