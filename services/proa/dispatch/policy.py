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
UTILISATION_OFF, UTILISATION_ON = 0.85, 0.75

IMPOSSIBLE = "no worker hosts a parity program, or all share one failure domain"


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
    """What is done for a query: retries after errors, copies at once, a hedge, a parity group."""

    retries: int = 0
    copies: int = 0
    hedge: bool = False
    parity: bool = False
    why: str = ""


class Policy(Protocol):
    """One redundancy policy."""

    name: str

    def plan(self, view: View) -> Plan:
        """What to do for a query that is sent now."""
        ...


class NoRedundancy:
    """One attempt. With the extra workers serving, this is *equal resources*."""

    name = "none"

    def plan(self, view: View) -> Plan:  # noqa: ARG002 - it looks at nothing
        """See `Policy`."""
        return Plan(why="as configured")


class Retry:
    """A failed attempt is sent again elsewhere."""

    name = "retry"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, why="as configured")


class Replicate:
    """r copies at once, each on an idle worker of another failure domain."""

    name = "replicate"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, copies=view.r, why="as configured")


class Hedge:
    """A copy once the answer is late, within a budget (Dean and Barroso, The Tail at Scale)."""

    name = "hedge"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        return Plan(retries=view.retry_max, hedge=True, why="as configured")


class Parity:
    """Groups of k queries with r parity rows (ParM, SOSP'19)."""

    name = "parity"

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        why = "as configured" if view.parity_possible else IMPOSSIBLE
        return Plan(retries=view.retry_max, parity=view.parity_possible, why=why)


class Auto:
    """Parity and hedge, each only where it pays."""

    name = "auto"

    def __init__(self) -> None:
        self._stragglers = False
        self._busy = False

    def plan(self, view: View) -> Plan:
        """See `Policy`."""
        self._stragglers = view.late_share >= (
            LATE_SHARE_OFF if self._stragglers else LATE_SHARE_ON
        )
        self._busy = view.utilisation >= (UTILISATION_ON if self._busy else UTILISATION_OFF)
        parity, why = self._judge(view)
        return Plan(retries=view.retry_max, hedge=True, parity=parity, why=why)

    def _judge(self, view: View) -> tuple[bool, str]:
        if not view.parity_possible:
            return False, f"hedge only: {IMPOSSIBLE}"
        if view.agreement_low:
            return False, "hedge only: reconstructions agree too rarely with exact answers"
        if self._busy:
            return False, f"hedge only: {view.utilisation:.0%} of the workers' time is used"
        if not self._stragglers:
            return False, f"hedge only: {view.late_share:.1%} of the answers are late"
        return True, f"parity and hedge: {view.late_share:.1%} of the answers are late"


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
