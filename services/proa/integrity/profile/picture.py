"""The roofline picture: each layer's FLOP/s over its intensity, under the machine's roof."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proa.errors import EnvironmentLacks
from proa.integrity.profile.measure import Profile, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's hues, which can be told apart with any common colour-vision deficiency.
HUES = ("#0072b2", "#d55e00", "#009e73", "#b3609a", "#c98a00", "#3fa3dc")
INK, MUTED, GRID = "#1c2430", "#5b6676", "#dfe3e8"
NAMED_MAX = 8  # layers with their name beside the dot: those that take the most time
_RC = {
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "font.size": 9.5,
    "svg.hashsalt": "proa",
}


def check_installed() -> None:
    """Raises EnvironmentLacks where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentLacks("pictures need matplotlib: pip install 'proa[bench]'")


def roofline_svg(profile: Profile) -> bytes:
    """The picture as SVG. Raises EnvironmentLacks where matplotlib is not installed."""
    check_installed()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):  # type: ignore[arg-type]  # its stubs want a type of 300 literals
        figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(figure.add_subplot(), profile)
        out = io.BytesIO()
        nothing = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def _draw(axes: Axes, profile: Profile) -> None:
    dots = [
        (bucket.batch, row)
        for bucket in profile.buckets
        for row in bucket.rows
        if row.work.intensity and row.use.flops_per_s and row.layer == row.like
    ]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs per byte that has to move")
    axes.set_ylabel("FLOP/s")
    axes.set_title(f"{profile.device.name}: {profile.model.program[:12]}", loc="left")
    axes.grid(visible=True)
    batches = [bucket.batch for bucket in profile.buckets]
    for hue, batch in zip(HUES, batches, strict=False):
        rows = [row for at, row in dots if at == batch]
        _dots(axes, rows, f"batch {batch}", hue)
        if batch == max(batches):
            _names(axes, rows)
    _roofs(axes, profile, [row.work.intensity or 1.0 for _, row in dots])
    if dots:
        # Above the slope nothing can be.
        axes.legend(frameon=False, loc="upper left")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 1e2), high * 1.3)


def _dots(axes: Axes, rows: Sequence[Row], label: str, hue: str) -> None:
    axes.scatter(
        [row.work.intensity or 0.0 for row in rows],
        [row.use.flops_per_s or 0.0 for row in rows],
        s=26,
        color=hue,
        linewidths=0,
        label=label,
        zorder=3,
    )


def _names(axes: Axes, rows: Sequence[Row]) -> None:
    """The layers of the largest batch: names of all would lie upon each other."""
    for row in sorted(rows, key=lambda one: -one.base_us)[:NAMED_MAX]:
        place = (row.work.intensity or 0.0, row.use.flops_per_s or 0.0)
        axes.annotate(
            row.layer, place, xytext=(5, 3), textcoords="offset points", fontsize=7.5, color=MUTED
        )


def _roofs(axes: Axes, profile: Profile, intensities: Sequence[float]) -> None:
    """Bandwidth times intensity up to the peak, for each dtype."""
    machine = profile.machine
    for dtype, peak in machine.flops_per_s.items():
        cmr = peak / machine.bytes_per_s
        low, high = min([*intensities, cmr / 8]), max([*intensities, cmr * 8])
        axes.plot(
            [low, cmr, high], [low * machine.bytes_per_s, peak, peak], color=INK, linewidth=1.5
        )
        axes.axvline(cmr, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
        axes.annotate(
            f"{dtype}: {peak / 1e9:.3g} GFLOP/s from {cmr:.3g} FLOPs per byte on",
            (cmr, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            fontsize=8,
            color=MUTED,
        )
