"""Colours of the report's pictures, for light and dark paper.

The hues are those of Okabe and Ito, which people with any of the common colour-vision deficiencies
can tell apart; they are lightened on dark paper. A policy and the answer source that it lives on
share a hue (hedge, replicate and replica, parity and reconstructed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proa.demo.records import SOURCES


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    muted: str
    grid: str
    hero: str
    baseline: str
    failed: str
    slow: Sequence[str]  # of neighbouring episodes, in turn, so that each can be seen
    killed: Sequence[str]
    hues: Mapping[str, str]

    def policy(self, name: str, others: Sequence[str]) -> str:
        """The colour of a policy that is neither hero nor baseline; `others`: all of those."""
        family = {"hedge": "ochre", "replicate": "green", "retry": "sky", "parity": "orange"}
        if name in family:
            return self.hues[family[name]]
        spare = ["purple", "sky", "ochre", "green", "orange"]
        taken = {family.get(other) for other in others}
        free = [hue for hue in spare if hue not in taken] or spare
        unnamed = [other for other in others if other not in family]
        return self.hues[free[unnamed.index(name) % len(free)]]

    def source(self, name: str) -> str:
        names = dict(
            zip(SOURCES, ("grey", "sky", "green", "ochre", "purple", "orange"), strict=True)
        )
        return self.hues[names.get(name, "purple")]

    def rc(self) -> Any:
        """matplotlib settings, by name (its stubs want a literal type of 300 of them)."""
        return {
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "axes.edgecolor": self.grid,
            "axes.labelcolor": self.muted,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.8,
            "text.color": self.ink,
            "xtick.color": self.grid,
            "ytick.color": self.grid,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "ytick.major.size": 0,
            "xtick.minor.size": 0,
            "ytick.minor.size": 0,
            "font.size": 9.5,
            "svg.hashsalt": "proa",
        }


THEMES = {
    "light": Theme(
        paper="#ffffff",
        ink="#1c2430",
        muted="#5b6676",
        grid="#dfe3e8",
        hero="#0072b2",
        baseline="#454d58",
        failed="#c40233",
        slow=("#fbf0d9", "#f6e4bd"),
        killed=("#f7dde3", "#f1cdd6"),
        hues={
            "grey": "#8793a1",
            "sky": "#3fa3dc",
            "green": "#009e73",
            "ochre": "#c98a00",
            "purple": "#b3609a",
            "orange": "#d55e00",
        },
    ),
    "dark": Theme(
        paper="#12161c",
        ink="#e8ecf1",
        muted="#9aa6b5",
        grid="#2b333e",
        hero="#56b4e9",
        baseline="#c3cad3",
        failed="#ff5c7a",
        slow=("#2a2415", "#383019"),
        killed=("#331b22", "#44222c"),
        hues={
            "grey": "#77838f",
            "sky": "#8fd0f5",
            "green": "#2bc096",
            "ochre": "#e9b44c",
            "purple": "#d68fc0",
            "orange": "#ff8a3d",
        },
    ),
}
