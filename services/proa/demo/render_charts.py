"""The report's pictures: the latency tail of every policy, and its timeline under faults."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from proa.demo.records import Report, RequestRecord
from proa.demo.render_theme import THEMES, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import SubplotSpec

# The phases whose tails are worth a picture, where the run has them.
TAIL_PHASES = {"slow": "one worker slow", "killed": "one worker killed"}
LATENCY_TICKS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)
LABEL_GAP_POINTS = 12.5


def tails(report: Report, theme: str, kind: str) -> bytes:
    """Latency by percentile in the slow and killed phases. kind: svg or png."""
    with mpl.rc_context(THEMES[theme].rc()):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        _draw_tails(figure, report, THEMES[theme], figure.add_gridspec(1, 1)[0])
        return saved(figure, kind)


def timelines(report: Report, theme: str, kind: str) -> bytes:
    """Every request of every policy over time, with the faults behind them."""
    policies = list(report.config.policies)
    with mpl.rc_context(THEMES[theme].rc()):
        figure = Figure(figsize=(10, 0.9 + 1.45 * len(policies)), layout="constrained")
        spec = figure.add_gridspec(1, 1)[0]
        _draw_timelines(figure, report, THEMES[theme], spec, policies)
        return saved(figure, kind)


def summary(report: Report, theme: str, kind: str) -> bytes:
    """The picture of the README: the tails, and the timelines of the baseline and the hero."""
    config = report.config
    policies = [p for p in config.policies if p in (config.baseline, config.hero)]
    with mpl.rc_context(THEMES[theme].rc()):
        figure = Figure(figsize=(10, 7.6), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
        _draw_tails(figure, report, THEMES[theme], rows[0])
        _draw_timelines(figure, report, THEMES[theme], rows[1], policies)
        return saved(figure, kind)


def saved(figure: Figure, kind: str) -> bytes:
    """The same bytes for the same figure. kind: svg or png."""
    out = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Type": None, "Format": None}
    figure.savefig(out, format=kind, dpi=170, metadata=metadata if kind == "svg" else None)
    return out.getvalue()


# Tails: percentile on a scale of nines (x), latency on a log scale (y).


def _draw_tails(figure: Figure, report: Report, theme: Theme, spec: SubplotSpec) -> None:
    phases = [phase.name for phase in report.config.phases if phase.name in TAIL_PHASES]
    grid = spec.subgridspec(1, max(len(phases), 1), wspace=0.08)
    first: Axes | None = None
    drawn = []
    for column, phase in enumerate(phases):
        axes = figure.add_subplot(grid[column], sharey=first)
        first = first or axes
        count = max(report.run(policy, phase).sent for policy in report.config.policies)
        title = f"{TAIL_PHASES[phase]}: latency by percentile (n = {count:,} each)"
        axes.set_title(title, loc="left", fontsize=10.5)
        # A little room to the right of the last sample, where its latency can be seen.
        nines_max = max(float(np.log10(max(count, 1))), 1.0) + 0.15
        ends = {
            p: _draw_tail(axes, report, theme, p, phase, nines_max) for p in report.config.policies
        }
        _percentile_axis(axes, nines_max)
        _latency_axis(axes, report.config.deadline_s, label=column == 0)
        axes.grid(axis="both")
        drawn.append((axes, {p: end for p, end in ends.items() if end is not None}))
    figure.draw_without_rendering()  # lays out: the labels need the height of their axes
    for axes, known in drawn:
        _label_ends(figure, axes, known, report, theme)


def _percentile_axis(axes: Axes, nines_max: float) -> None:
    shares = [share for share in SHARES if _nines(share) <= nines_max]
    axes.xaxis.set_major_locator(FixedLocator([float(_nines(share)) for share in shares]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"p{100 * share:.4g}" for share in shares]))
    axes.set_xlim(0, nines_max)


def _draw_tail(
    axes: Axes, report: Report, theme: Theme, policy: str, phase: str, nines_max: float
) -> float | None:
    """Draw the policy's curve; the latency at which it leaves the picture, if there is one."""
    values = report.latencies_ms(policy, phase)
    if len(values) == 0:
        return None
    nines = _nines(np.arange(len(values)) / len(values))
    steps = np.append(np.arange(0.0, nines[-1], 0.01), nines[-1])
    kept = np.unique(np.searchsorted(nines, steps))
    x = np.append(nines[kept], nines_max)
    y = np.append(values[kept], values[-1])
    hero = policy == report.config.hero
    axes.plot(
        x,
        y,
        drawstyle="steps-post",
        color=_policy_colour(report, theme, policy),
        linewidth=2.6 if hero else 1.5,
        zorder=5 if hero else 3,
        solid_capstyle="butt",
    )
    return float(values[-1])


def _nines(share: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """0 at the minimum, 1 at p90, 2 at p99, 3 at p99.9."""
    return np.asarray(-np.log10(1.0 - np.asarray(share, np.float64)))


def _label_ends(
    figure: Figure, axes: Axes, ends: dict[str, float], report: Report, theme: Theme
) -> None:
    """Write each policy's label at the end of its curve, pushed apart where they would overlap."""
    order = sorted(ends, key=lambda policy: ends[policy])
    height = axes.get_window_extent().height * 72 / figure.dpi  # in points
    bottom, top = np.log10(axes.get_ylim())
    natural = [(np.log10(ends[policy]) - bottom) / (top - bottom) * height for policy in order]
    for policy, at, moved in zip(order, natural, _apart(natural, height), strict=True):
        axes.annotate(
            report.config.policies[policy],
            xy=(1.0, at / height),
            xycoords="axes fraction",
            xytext=(1.045, moved / height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if policy == report.config.hero else "normal",
            color=_policy_colour(report, theme, policy),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": _policy_colour(report, theme, policy),
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _apart(natural: Sequence[float], height: float) -> list[float]:
    """Ascending places at least LABEL_GAP_POINTS apart, at most `height`, near the natural ones."""
    placed: list[float] = []
    for at in natural:
        placed.append(max(at, placed[-1] + LABEL_GAP_POINTS) if placed else at)
    ceiling = height
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - LABEL_GAP_POINTS
    return placed


# Timelines: one panel per policy, one dot per request.


def _draw_timelines(
    figure: Figure, report: Report, theme: Theme, spec: SubplotSpec, policies: Sequence[str]
) -> None:
    grid = spec.subgridspec(len(policies), 1, hspace=0.05)
    first: Axes | None = None
    for row, policy in enumerate(policies):
        axes = figure.add_subplot(grid[row], sharex=first, sharey=first)
        first = first or axes
        _draw_faults(axes, report, theme, policy)
        _draw_dots(axes, report.of(policy), report, theme)
        _title(axes, report, theme, policy, pad=3 if row else 17)
        axes.set_xlim(0, max(phase.end_s for phase in report.config.phases))
        _latency_axis(axes, report.config.deadline_s, label=False)
        axes.grid(axis="y")
        last = row == len(policies) - 1
        axes.tick_params(axis="x", labelbottom=last, length=3 if last else 0)
        if last:
            axes.set_xlabel("seconds from the start of the run; latency in ms")
    if first is not None:
        _name_phases(first, report, theme)
        figure.legend(
            handles=_legend(report, theme),
            loc="outside lower center",
            ncols=9,
            frameon=False,
            fontsize=9,
            handletextpad=0.4,
            columnspacing=1.4,
        )


def _draw_faults(axes: Axes, report: Report, theme: Theme, policy: str) -> None:
    windows = [window for window in report.windows if window.policy == policy]
    for index, window in enumerate(sorted(windows, key=lambda window: window.start_s)):
        shades = theme.killed if window.kind == "killed" else theme.slow
        shade = shades[index % len(shades)]
        axes.axvspan(window.start_s, window.end_s, color=shade, linewidth=0, zorder=0)
    for phase in report.config.phases[1:]:
        axes.axvline(phase.start_s, color=theme.muted, linewidth=0.7, linestyle=(0, (2, 3)))


def _draw_dots(axes: Axes, records: Sequence[RequestRecord], report: Report, theme: Theme) -> None:
    for source in report.sources():
        dots = [record for record in records if record.ok and record.source == source]
        common = source == "worker"
        axes.scatter(
            [record.intended_s for record in dots],
            [1e3 * record.latency_s for record in dots],
            s=3 if common else 9,
            alpha=0.55 if common else 0.9,
            color=theme.source(source),
            linewidths=0,
            rasterized=True,
            zorder=2 if common else 3,
        )
    failed = [record.intended_s for record in records if not record.ok]
    deadline_ms = 1e3 * report.config.deadline_s
    axes.scatter(
        failed,
        [deadline_ms] * len(failed),
        s=26,
        marker="x",
        color=theme.failed,
        linewidths=1.2,
        clip_on=False,
        zorder=4,
    )


def _title(axes: Axes, report: Report, theme: Theme, policy: str, pad: float) -> None:
    axes.set_title(
        report.config.policies[policy], loc="left", fontsize=9.5, fontweight="bold", pad=pad
    )
    phases = [phase.name for phase in report.config.phases if phase.name in TAIL_PHASES]
    found = [f"p99 {phase} {report.run(policy, phase).p99_ms:.0f} ms" for phase in phases]
    found.append(f"failed {sum(run.failed for run in report.runs if run.policy == policy)}")
    text = "     ".join(found)
    axes.set_title(text, loc="right", fontsize=9.5, color=theme.muted, pad=pad)


def _name_phases(axes: Axes, report: Report, theme: Theme) -> None:
    for phase in report.config.phases:
        axes.annotate(
            phase.name,
            xy=((phase.start_s + phase.end_s) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color=theme.muted,
        )


def _legend(report: Report, theme: Theme) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=theme.source(s), label=s)
        for s in report.sources()
    ]
    cross = Line2D([], [], linestyle="", marker="x", color=theme.failed, label="failed")
    kinds = {window.kind for window in report.windows}
    shades = {"slow": theme.slow[-1], "killed": theme.killed[-1]}
    patches = [Patch(color=c, label=f"a worker {k}") for k, c in shades.items() if k in kinds]
    return [*handles, cross, *patches]


def _policy_colour(report: Report, theme: Theme, policy: str) -> str:
    config = report.config
    if policy == config.hero:
        return theme.hero
    if policy == config.baseline:
        return theme.baseline
    others = [p for p in config.policies if p not in (config.hero, config.baseline)]
    return theme.policy(policy, others)


def _latency_axis(axes: Axes, deadline_s: float, *, label: bool) -> None:
    low, high = axes.get_ylim() if axes.get_yscale() == "log" else (10.0, 1e3 * deadline_s)
    axes.set_yscale("log")
    axes.set_ylim(min(low, 10.0), max(high, 1.15e3 * deadline_s))
    axes.yaxis.set_major_locator(FixedLocator(LATENCY_TICKS_MS))
    axes.yaxis.set_major_formatter(FixedFormatter([str(tick) for tick in LATENCY_TICKS_MS]))
    axes.yaxis.set_minor_locator(NullLocator())
    if label:
        axes.set_ylabel("latency, ms")
