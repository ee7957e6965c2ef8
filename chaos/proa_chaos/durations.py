"""Durations as Chaos Mesh (and Go) write them: `300ms`, `5s`, `1m30s`."""

from __future__ import annotations

import re

from proa.spec.readers import Reader, anchored, text
from proa.spec.section import Section

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)"
_DURATION = rf"({_PART})+"


def duration(low_s: float, high_s: float) -> Reader[float]:
    """A duration from `low_s` to `high_s`, in seconds."""

    def read(section: Section) -> float:
        value = text(section)
        if not re.fullmatch(_DURATION, value):
            raise section.error(f"{value!r} is not a duration such as 300ms, 5s, 1m30s")
        seconds = sum(float(m[1]) * _UNITS_S[m[3]] for m in re.finditer(_PART, value))
        if not low_s <= seconds <= high_s:
            raise section.error(
                f"{value} is out of range; the limits are {low_s:g} s to {high_s:g} s"
            )
        return seconds

    return Reader(read, {"type": "string", "pattern": anchored(_DURATION)})
