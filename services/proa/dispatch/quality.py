"""How well reconstructions agree with the answers that came after all (parm facts F10)."""

from __future__ import annotations

from collections import deque

SAMPLES_MIN = 32
HYSTERESIS = 0.02


class Quality:
    """Agreement over the last `size` assessed groups."""

    def __init__(self, *, agreement_min: float, sample: float, size: int = 256) -> None:
        self._recent: deque[float] = deque(maxlen=size)
        self._agreement_min = agreement_min
        self._period = round(1 / sample) if sample > 0 else 0
        self._groups = 0
        self.low = False

    @property
    def samples(self) -> int:
        """How many assessed groups the estimate rests on."""
        return len(self._recent)

    @property
    def agreement(self) -> float | None:
        """The mean agreement, 0 to 1; None before the first assessment."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def sample_next(self) -> bool:
        """Whether the next group is one whose quality is measured: every 1/sample-th."""
        self._groups += 1
        return self._period > 0 and self._groups % self._period == 0

    def note(self, agreement: float) -> None:
        """Take in one assessed group, and switch reconstruction off or on again."""
        self._recent.append(agreement)
        mean = self.agreement
        assert mean is not None
        if self.samples >= SAMPLES_MIN:
            limit = self._agreement_min + (HYSTERESIS if self.low else 0.0)
            self.low = mean < min(limit, 1.0)
