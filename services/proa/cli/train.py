"""proa train, proa eval."""

from __future__ import annotations

from proa.cli.common import Verbs


def register(verbs: Verbs) -> None:
    """Waits for proa.train."""
