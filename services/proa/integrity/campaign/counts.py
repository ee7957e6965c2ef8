"""What a campaign counts, and how sure a counted rate is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

Z95 = 1.959964  # two-sided 95 %
BIT_FIELDS = ("injected", "detected", "visible", "visible_detected")


@dataclass
class Counts:
    """Sums over faults; all add up.

    `clean_checks`, `false_positives`: checks of undisturbed products, and their alarms.
    `cleared`: suspicions of theirs that a second look cleared; `worst_ratio`: residual over limit.
    `injected`: faults that changed something. `visible`: the stored output differs; `large`: by
    more than 1e-3 of the outputs' sigma. `hidden`, `hidden_detected`: of those in accumulators that
    move no sum of the check clearly beyond its limit; `large_hidden`: large, hidden and not
    detected. `detected`, `visible_detected`, `large_detected`: with
    an alarm. `corrected`: the output equals the clean one bit for bit. `miscorrected`: the output
    is neither the clean nor the faulty one. `answers`: faults that change what a model answers,
    left as they are. `located` of `located_of` alarms, tried one by one:
    the verdict names the row, and for a fault of one element the column.
    `bits`: of single flips, the four numbers of BIT_FIELDS by bit.
    """

    clean_checks: int = 0
    false_positives: int = 0
    cleared: int = 0
    injected: int = 0
    visible: int = 0
    detected: int = 0
    visible_detected: int = 0
    large: int = 0
    large_detected: int = 0
    hidden: int = 0
    hidden_detected: int = 0
    large_hidden: int = 0
    corrected: int = 0
    miscorrected: int = 0
    answers: int = 0
    located: int = 0
    located_of: int = 0
    worst_ratio: float = 0.0
    bits: dict[int, list[int]] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        for one in fields(self):
            if one.type == "int":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.worst_ratio = max(self.worst_ratio, other.worst_ratio)
        for bit, counts in other.bits.items():
            mine = self.bits.setdefault(bit, [0] * len(BIT_FIELDS))
            self.bits[bit] = [a + b for a, b in zip(mine, counts, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `bits` only where there are any."""
        tree = asdict(self)
        bits = tree.pop("bits")
        return {**tree, "bits": {str(bit): bits[bit] for bit in sorted(bits)}} if bits else tree

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Counts:
        bits = {int(bit): list(counts) for bit, counts in tree.get("bits", {}).items()}
        return cls(**{**tree, "bits": bits})


def total(counts: Iterable[Counts]) -> Counts:
    found = Counts()
    for one in counts:
        found.add(one)
    return found


def wilson(part: int, whole: int) -> tuple[float, float]:
    """95 % interval of a rate: Wilson's score, which holds at 0 and at 1 too."""
    if not whole:
        return 0.0, 1.0
    rate, z2 = part / whole, Z95 * Z95
    middle = rate + z2 / (2 * whole)
    spread = Z95 * math.sqrt(rate * (1 - rate) / whole + z2 / (4 * whole * whole))
    low, high = ((middle + sign * spread) / (1 + z2 / whole) for sign in (-1, 1))
    return (0.0 if part == 0 else low), (1.0 if part == whole else high)


def bound(false_positives: int, checks: int) -> float:
    """One-sided 95 % upper bound of the rate of false positives: 3 / n where there were none."""
    if not checks:
        return 1.0
    if not false_positives:
        return float(1.0 - 0.05 ** (1.0 / checks))
    return wilson(false_positives, checks)[1]


def share(part: int, whole: int) -> float:
    """1 where there was nothing to find."""
    return part / whole if whole else 1.0
