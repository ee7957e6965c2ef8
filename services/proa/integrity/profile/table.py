"""The profile as lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from proa.integrity.profile.choice import NONE
from proa.integrity.profile.measure import Bucket, Profile, Row

LAYER_CELLS_MAX = 36
NOTHING = "-"


def lines(profile: Profile) -> Iterator[str]:
    """Device, then for each batch size its layers, sums and what they say about it."""
    device, machine = profile.device, profile.machine
    threads = f", {profile.threads} thread(s)" if device.kind == "cpu" else ""
    yield f"{device.name}{threads}, torch {device.torch}"
    for dtype, rate in machine.flops_per_s.items():
        cmr = machine.cmr(dtype) or 0.0
        rates = f"{_rate(rate)}FLOP/s, {_rate(machine.bytes_per_s)}B/s"
        yield f"  {dtype}: {rates}: from {cmr:.1f} FLOPs per byte on compute is the bound"
    for bucket in profile.buckets:
        yield ""
        yield from _bucket_lines(bucket, profile)


def _bucket_lines(bucket: Bucket, profile: Profile) -> Iterator[str]:
    program = bucket.program
    overhead = _percent(program["overhead"])
    planned = f"as planned {program['plan_us']:.1f} us ({overhead})"
    yield f"batch {bucket.batch}: program {program['base_us']:.1f} us, {planned}"
    schemes = [name for name in bucket.totals if name not in (NONE, "guided", "plan")]
    on_gpu = profile.device.kind == "cuda"
    head = ["layer", "shape", "us", "FLOP/B", "bound", "peak", "roof"]
    head += ["idle", "waste"] if on_gpu else []
    head += ["CMR at", *schemes, "plan"]
    rows = [_cells(row, schemes, profile.layers, on_gpu) for row in bucket.rows]
    yield from _aligned([head, *rows])
    base_us = bucket.totals[NONE]
    known = (*profile.allowed, "guided", "plan")
    sums = [
        f"{name} {_extra(us, base_us)}{'' if name in known else ' (covers less)'}"
        for name, us in bucket.totals.items()
        if name != NONE
    ]
    yield f"  products {base_us:.1f} us; checked: {', '.join(sums)}"
    yield from (f"  not {row.layer} ({row.op}): {row.reason}" for row in bucket.rows if row.reason)


def _cells(row: Row, schemes: Sequence[str], plan: Mapping[str, str], on_gpu: bool) -> list[str]:
    use = row.use
    intensity = row.work.intensity
    own = [_share(use.idle_tensor_cores), _share(use.tile_waste)] if on_gpu else []
    costs = [
        _percent(row.schemes[name].overhead) if name in row.schemes else NOTHING for name in schemes
    ]
    return [
        row.layer if len(row.layer) <= LAYER_CELLS_MAX else "…" + row.layer[1 - LAYER_CELLS_MAX :],
        row.shape,
        f"{row.base_us:.1f}",
        NOTHING if intensity is None else f"{intensity:.1f}",
        use.bound or NOTHING,
        _share(use.compute),
        _share(use.roofline),
        *own,
        NOTHING if use.batch_at_cmr is None else str(use.batch_at_cmr),
        *costs,
        plan.get(row.layer, NOTHING),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Text columns to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.1f} %"


def _extra(us: float, base_us: float) -> str:
    return _percent(us / base_us - 1.0 if base_us else None)


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _rate(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} "
