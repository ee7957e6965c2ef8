"""The store demo's picture: loss and throughput over time, one line per arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from proa.demo.render_charts import saved
from proa.demo.render_theme import THEMES, Theme
from proa.demo.store.arms import Played
from proa.demo.store.plan import WORKERS
from proa.demo.store.records import Story

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 48
SMOOTH = 0.05  # of the steps, in the loss


def stall_s(played: Played) -> float:
    """The longest time without a step that nobody had done before, from the first one on."""
    best, last, longest = -1, 0.0, 0.0
    for step in played.steps:
        if step.number > best:
            if best >= 0:
                longest = max(longest, step.at_s - last)
            best, last = step.number, step.at_s
    return longest


def draw(story: Story, theme: str, kind: str) -> bytes:
    """kind: svg or png."""
    look = THEMES[theme]
    with mpl.rc_context(look.rc()):
        figure = Figure(figsize=(10, 2.6 + 1.35 * len(story.played)), layout="constrained")
        heights = [2.2] + [1.0] * len(story.played)
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        end_s = 1.01 * max(one.steps[-1].at_s for one in story.played)
        loss = figure.add_subplot(grid[0])
        _loss(loss, story, look)
        loss.set_xlim(0, end_s)
        first: Axes | None = None
        for row, one in enumerate(story.played, 1):
            axes = figure.add_subplot(grid[row], sharex=first, sharey=first)
            first = first or axes
            _throughput(axes, one, story, look, end_s)
            axes.set_xlim(0, end_s)
            axes.tick_params(axis="x", labelbottom=row == len(story.played))
        axes.set_xlabel("seconds of training")
        return saved(figure, kind)


def colour(theme: Theme, arm: str) -> str:
    if arm == "parity":
        return theme.hero
    return theme.baseline if arm == "clean" else theme.hues["orange"]


def _loss(axes: Axes, story: Story, theme: Theme) -> None:
    for one in story.played:
        values = np.array([step.loss for step in one.steps])
        window = max(1, round(SMOOTH * story.plan.steps))
        kernel = np.ones(window)
        smooth = np.convolve(values, kernel)[: len(values)]
        smooth /= np.convolve(np.ones(len(values)), kernel)[: len(values)]
        axes.plot(
            [step.at_s for step in one.steps],
            smooth,
            color=colour(theme, one.arm.name),
            linewidth=2.4 if one.arm.name == "parity" else 1.5,
            zorder=5 if one.arm.name == "parity" else 3,
            label=one.arm.label,
        )
        if one.killed_s is not None:
            axes.axvline(
                one.killed_s,
                color=colour(theme, one.arm.name),
                linewidth=0.8,
                linestyle=(0, (2, 3)),
            )
    axes.set_title("loss, mean of the last steps; dotted: a shard dies", loc="left", fontsize=10.5)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y")


def _throughput(axes: Axes, one: Played, story: Story, theme: Theme, end_s: float) -> None:
    """New examples per second; steps that are replayed count for nothing and are drawn pale."""
    edges = np.linspace(0, end_s, BINS + 1)
    size = story.plan.batch * WORKERS / (edges[1] - edges[0])
    best = np.maximum.accumulate([-1] + [step.number for step in one.steps])
    at = np.array([step.at_s for step in one.steps])
    new = np.array([step.number for step in one.steps]) > best[:-1]
    fresh, again = (np.histogram(at[which], edges)[0] * size for which in (new, ~new))
    hue = colour(theme, one.arm.name)
    axes.bar(edges[:-1], fresh, np.diff(edges), align="edge", color=hue, linewidth=0)
    axes.bar(edges[:-1], again, np.diff(edges), align="edge", bottom=fresh, color=hue, alpha=0.3)
    if one.killed_s is not None and one.recovered_s is not None:
        shade = theme.killed[0]
        axes.axvspan(
            one.killed_s, one.killed_s + one.recovered_s, color=shade, linewidth=0, zorder=0
        )
    text = one.arm.label
    if one.recovered_s is not None:
        text += f": recovered in {one.recovered_s:.1f} s"
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold", pad=3)
    axes.set_title("examples/s", loc="right", fontsize=9, color=theme.muted, pad=3)
    axes.grid(axis="y")
