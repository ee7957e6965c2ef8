"""Redundancy policies: each says what is done for a query, from what is known now.

All share the engine, the picker, the budget and the metrics, so that a comparison compares the
policies and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Parity earns its work where stragglers are common (policies table, sections 1 and 3); where they
# are rare a hedge costs far less. Two thresholds, so that the choice does not flutter.
LATE_SHARE_ON, LATE_SHARE_OFF = 0.01, 0.004
# Above about 70 % parity only takes workers that queries need: simulated at 18 workers, 8 of them
# slow (tests/fakes/simulation.py, two seeds), p50 / p99 / p99.9 in ms of parity + hedge against
# hedge alone are 21.1 / 47 / 59 against 20.3 / 51 / 64 at 59 % utilisation, 22.9 / 59 / 77 against
# 20.7 / 58 / 94 at 72 %, and 23.6 / 62 / 86 against 21.1 / 61 / 91 at 78 %.
UTILISATION_OFF, UTILISATION_ON = 0.70, 0.60

IMPOSSIBLE = "no worker hosts a parity program, or all share one failure domain"
DISTRUSTED = "reconstructions agree too rarely with exact answers"


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at. Shares are 0 to 1."""

    utilisation: float
    late_share: float
    parity_possible: bool
    agreement_low: bool
    r: int
    retry_max: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done for a query: retries after errors, copies at once, a hedge, a parity group.
    `measure`: groups only to measure their agreement, else it could never be found good again."""

    retries: int = 0
    copies: int = 0
    hedge: bool = False
    parity: bool = False
    measure: bool = False
    why: str = ""


class Policy(Protocol):
    """One redundancy policy. `ties`: a query that waits may be sent to a busy worker (tied.py).
    `thrifty`: parity that costs as much as copies waits until a query is at risk (spare.py)."""

    name: str
    ties: bool = False
    thrifty: bool = False

    def plan(self, view: View) -> Plan:
        """What to do for a query that is sent now."""
        ...


class NoRedundancy(Policy):
    """One attempt. With the extra workers serving, this is *equal resources*."""

    name = "none"

    def plan(self, view: View) -> Plan:  # noqa: ARG002 - it looks at nothing
        """See `Policy`."""
        return Plan(why="as configured")


class Retry(Policy):
    """A failed attempt is sent again elsewhere."""

    name = "retry"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, why="as configured")


class Replicate(Policy):
    """r copies at once, each on an idle worker of another failure domain."""

    name = "replicate"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, copies=view.r, why="as configured")


class Hedge(Policy):
    """A copy once the answer is late, within a budget (Dean and Barroso, The Tail at Scale)."""

    name = "hedge"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, hedge=True, why="as configured")


class Parity(Policy):
    """Groups of k queries with r parity rows (ParM, SOSP'19)."""

    name = "parity"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        if not view.parity_possible:
            return Plan(retries=view.retry_max, why=IMPOSSIBLE)
        if view.agreement_low:
            return Plan(retries=view.retry_max, measure=True, why=DISTRUSTED)
        return Plan(retries=view.retry_max, parity=True, why="as configured")


class Auto(Policy):
    """Parity and hedge, each only where it pays."""

    name = "auto"
    ties = True
    thrifty = True

    def __init__(self) -> None:
        self._stragglers = False
        self._busy = False

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        self._stragglers = view.late_share >= (
            LATE_SHARE_OFF if self._stragglers else LATE_SHARE_ON
        )
        self._busy = view.utilisation >= (UTILISATION_ON if self._busy else UTILISATION_OFF)
        why_not = self._why_not(view)
        if why_not:
            return Plan(retries=view.retry_max, hedge=True, why=f"hedge only: {why_not}")
        if view.agreement_low:
            why = f"hedge only: {DISTRUSTED}"
            return Plan(retries=view.retry_max, hedge=True, measure=True, why=why)
        why = f"parity and hedge: {view.late_share:.1%} of the answers are late"
        return Plan(retries=view.retry_max, hedge=True, parity=True, why=why)

    def _why_not(self, view: View) -> str:
        """What speaks against parity; empty: nothing."""
        if not view.parity_possible:
            return IMPOSSIBLE
        if self._busy:
            return f"{view.utilisation:.0%} of the workers' time is used"
        if not self._stragglers:
            return f"{view.late_share:.1%} of the answers are late"
        return ""


def make_policies() -> dict[str, Policy]:
    """A fresh instance of every policy, by name."""
    found: tuple[Policy, ...] = (
        NoRedundancy(),
        Retry(),
        Replicate(),
        Hedge(),
        Parity(),
        Auto(),
    )
    return {policy.name: policy for policy in found}
