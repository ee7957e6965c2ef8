"""Which scheme each layer gets: plain arithmetic on measured times, no measuring here.

A plan takes, per layer, the cheapest of the schemes that are allowed, so over any set of layers
its time is never above that of one scheme for all of them (guided selection: Kosaian and Rashmi,
SC'21).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# In the order of preference where times are equal. `dup` computes twice: what memory did to a
# weight goes into both, so it covers less than the others, which hold sums taken beforehand.
SCHEMES = ("row", "tile", "exact", "dup")
COVERS_WEIGHTS = frozenset(("row", "tile", "exact"))
NONE = "none"

Times = Mapping[str, float]  # microseconds by scheme, `none` among them


@dataclass(frozen=True)
class Cost:
    """What checking one layer costs at one batch size. `extra_us`: above the layer's own time."""

    layer: str
    flops: int
    extra_us: float


def allowed(measured: Iterable[str], also: Iterable[str] = ()) -> tuple[str, ...]:
    """Of the `measured` schemes those that a plan may take: which cover what `row` covers, and
    those in `also`. A layer that has none of these may have any: it has no better check."""
    there = [scheme for scheme in SCHEMES if scheme in set(measured)]
    good = [scheme for scheme in there if scheme in COVERS_WEIGHTS or scheme in set(also)]
    return tuple(good or there)


def cheapest(times: Times, also: Iterable[str] = ()) -> str:
    """The allowed scheme with the least time; `none` where there is no scheme."""
    return min(allowed(times, also), key=lambda scheme: times[scheme], default=NONE)


def cheapest_over(batches: Sequence[Times], also: Iterable[str] = ()) -> str:
    """The scheme with the least time summed over batch sizes: a packed program has one."""
    everywhere = set.intersection(*(set(times) for times in batches)) if batches else set()
    summed = {scheme: sum(times[scheme] for times in batches) for scheme in everywhere}
    return cheapest(summed, also)


def total(layers: Iterable[Times], scheme: str, also: Iterable[str] = ()) -> float:
    """Microseconds of all layers under one scheme; a layer that lacks it has its cheapest."""
    extra = tuple(also)
    return sum(t[scheme] if scheme in t else t[cheapest(t, extra)] for t in layers)


def guided(layers: Iterable[Times], also: Iterable[str] = ()) -> float:
    """Microseconds of all layers, each under its cheapest scheme."""
    extra = tuple(also)
    return sum(times[cheapest(times, extra)] for times in layers)


@dataclass(frozen=True)
class Expense:
    """One batch size: microseconds of the unprotected program, of summing up its verdicts (once,
    whatever is checked), and of each check."""

    program_us: float
    verdicts_us: float
    costs: Sequence[Cost]


def left_out(expenses: Sequence[Expense], percent_max: float) -> list[str]:
    """Layers to leave unchecked so that what the rest cost is at most `percent_max` % of a program,
    at each batch size. Those go first whose check covers the fewest FLOPs per microsecond."""
    dropped: list[str] = []
    for one in expenses:
        limit_us = one.program_us * percent_max / 100.0
        kept = [cost for cost in one.costs if cost.layer not in dropped]
        kept.sort(key=_worth)
        while kept and one.verdicts_us + _sum(kept) > limit_us:
            dropped.append(kept.pop(0).layer)
    return dropped


def _worth(cost: Cost) -> tuple[float, str]:
    """What a check covers per microsecond; those that cost nothing come last."""
    return cost.flops / cost.extra_us if cost.extra_us > 0 else math.inf, cost.layer


def _sum(costs: Iterable[Cost]) -> float:
    # A check that was timed faster than nothing pays for no other.
    return sum(max(0.0, cost.extra_us) for cost in costs)
