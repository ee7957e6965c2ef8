"""What the serving demo does, as data: phases, faults, policies. One seed gives one scenario, and
every policy gets the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proa.demo.records import BASELINE, HERO, Phase

WORKERS = 6
RATE_HZ = 100.0
SERVICE_MS = 20.0
SLOW_MS = 40.0
EPISODE_MEAN_S = 0.6
DEADLINE_S = 0.5
# Half a service time: at this rate most groups then fill up with queries of their own.
GROUP_MS_MAX = 10

FULL_S = {"calm": 5.0, "slow": 20.0, "killed": 10.0, "recovery": 5.0}
QUICK_S = {"calm": 0.5, "slow": 3.0, "killed": 1.5, "recovery": 1.0}


@dataclass(frozen=True)
class Contender:
    """One policy of the demo: its label for people, and the `redundancy` keys of its spec."""

    name: str
    label: str
    redundancy: Mapping[str, Any]
    dedicated: int = 0


CONTENDERS = (
    Contender("none", "none, all 6 serve (equal resources)", {"policy": "none"}),
    Contender("replicate", "replicate on idle workers", {"policy": "replicate"}),
    Contender("hedge", "hedge, adaptive, 10 % budget", {"policy": "hedge"}),
    Contender(
        "parity-dedicated",
        "parity k=2, 4 + 2 dedicated (as published)",
        # The published system answers with whatever comes first and waits for members for ever.
        {"policy": "parity", "pool": "dedicated", "patience": "first", "groupMsMax": 60_000},
        dedicated=2,
    ),
    Contender(
        "parity", "parity k=2, shared pool", {"policy": "parity", "groupMsMax": GROUP_MS_MAX}
    ),
    Contender(
        "auto",
        "auto (parity + hedge where each pays)",
        {"policy": "auto", "groupMsMax": GROUP_MS_MAX},
    ),
)
QUICK = ("none", "hedge", "auto")


@dataclass(frozen=True)
class Episode:
    """`worker` is slow from `start_s` to `end_s` of the run."""

    worker: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Scenario:
    """Everything that is random, drawn once."""

    seed: int
    phases: Sequence[Phase]
    episodes: Sequence[Episode]
    killed: int
    contenders: Sequence[Contender]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_turn(self) -> Sequence[Contender]:
        """The contenders as they run: the two that the headline compares come last, one right after
        the other, because a shared machine is not the same for long."""
        headline = (BASELINE, HERO)
        others = [one for one in self.contenders if one.name not in headline]
        return [*others, *(one for one in self.contenders if one.name in headline)]

    @property
    def duration_s(self) -> float:
        """Length of one policy's run."""
        return self.phases[-1].end_s

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    def phase_at(self, at_s: float) -> str:
        """The name of the phase in which second `at_s` lies."""
        for phase in self.phases:
            if at_s < phase.end_s:
                return phase.name
        return self.phases[-1].name


def make_scenario(*, seed: int, quick: bool) -> Scenario:
    """The demo's scenario; `quick`: about 6 s and three policies instead of 40 s and six."""
    rng = np.random.default_rng(seed)
    phases: list[Phase] = []
    at_s = 0.0
    for name, length_s in (QUICK_S if quick else FULL_S).items():
        phases.append(Phase(name, at_s, at_s + length_s))
        at_s += length_s
    slow = next(phase for phase in phases if phase.name == "slow")
    chosen = [c for c in CONTENDERS if not quick or c.name in QUICK]
    return Scenario(
        seed=seed,
        phases=phases,
        episodes=_episodes(slow, rng),
        killed=int(rng.integers(WORKERS)),
        contenders=chosen,
        facts={
            "workers": WORKERS,
            "rate_hz": RATE_HZ,
            "service_ms": SERVICE_MS,
            "slow_ms": SLOW_MS,
            "episode_mean_s": EPISODE_MEAN_S,
            "deadline_s": DEADLINE_S,
            "group_ms_max": GROUP_MS_MAX,
            "seed": seed,
            "quick": quick,
        },
    )


def _episodes(slow: Phase, rng: np.random.Generator) -> list[Episode]:
    """Always one slow worker, never the same twice running; exponential lengths."""
    found: list[Episode] = []
    at_s, worker = slow.start_s, int(rng.integers(WORKERS))
    while at_s < slow.end_s:
        end_s = min(slow.end_s, at_s + max(0.05, float(rng.exponential(EPISODE_MEAN_S))))
        found.append(Episode(worker, at_s, end_s))
        worker = (worker + int(rng.integers(1, WORKERS))) % WORKERS
        at_s = end_s
    return found
