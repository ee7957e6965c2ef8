"""docs/results/abft.md from what docs/results/abft.json has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WHOLE, LIMIT = "all", 0.15
LIMITED = (("resnet-50", 8), ("transformer-block", 8))
GPU_COMMAND = "python benchmarks/abft_gpu.py"
GPU_SCHEMES = ("tile", "fused", "dup", "guided")
COUNTS = ("injected", "visible", "detected", "located", "corrected")
Row = Mapping[str, Any]


def page(tree: Mapping[str, Any]) -> str:
    """The page."""
    cpu = [row for row in tree["rows"] if "cpu_overhead" in row]
    gpu = [row for row in tree["rows"] if "cpu_overhead" not in row]
    parts = [
        "# Results of checked matrix products",
        "Written by `make results-abft` from [abft.json](abft.json); see [abft.md](../abft.md).",
        *_cpu(tree["run"], cpu, tree["coverage"]),
        *_gpu(gpu, tree["gpu"].get("networks", {})),
        *_campaign(tree["campaign"]),
    ]
    return "\n\n".join(parts) + "\n"


def _cpu(run: Row, rows: Sequence[Row], coverage: Sequence[Row]) -> list[str]:
    whole = [row for row in rows if row["layer"] == WHOLE]
    small = " Inputs are small: this run only tries the benchmark out." if run["small"] else ""
    load = f"{run['load_before']:g} and {run.get('load_after', run['load_before']):g}"
    how = (
        f"{run['device']}, one of {run['cores']} cores, torch {run['torch']}, fp32; load of the"
        f" machine before and after: {load}. Median overheads of {run['repeats']} paired"
        f" repetitions, in CPU time of the process and on the wall; quartiles in brackets.{small}"
    )
    parts = [
        "## CPU",
        how,
        _table(
            ("network", "batch", "unprotected ms", *_both("row"), *_both("dup")),
            [_network_row(group) for group in _grouped(whole, "network", "batch").values()],
        ),
        "\n".join(_target(whole, name, batch) for name, batch in LIMITED),
        "### What is checked",
        _table(
            ("network", "scheme", "of the FLOPs", "not checked"),
            [
                (c["network"], c["scheme"], f"{100 * c['share']:.1f} %", "; ".join(c["unchecked"]))
                for c in coverage
            ],
        ),
    ]
    worst = max(
        (row for row in whole if row["scheme"] == "row"), key=lambda r: r["overhead"], default=None
    )
    shown = {(worst["network"], worst["batch"])} if worst else set()
    for name, batch in sorted(shown | {key for key in LIMITED if _find(whole, *key)}):
        parts += _layers(rows, name, batch)
    return parts


def _both(scheme: str) -> tuple[str, str]:
    return f"`{scheme}` CPU", f"`{scheme}` wall"


def _network_row(group: Sequence[Row]) -> tuple[str, ...]:
    by_scheme = {row["scheme"]: row for row in group}
    first = group[0]
    cells = [first["network"], str(first["batch"]), f"{first['base_us'] / 1e3:.2f}"]
    for scheme in ("row", "dup"):
        row = by_scheme[scheme]
        low, high = row["overhead_quartiles"]
        cells += [
            _percent(row["cpu_overhead"]),
            f"{_percent(row['overhead'])} ({100 * low:+.1f} to {100 * high:+.1f})",
        ]
    return tuple(cells)


def _target(whole: Sequence[Row], name: str, batch: int) -> str:
    row = _find(whole, name, batch)
    goal = f"- `row` on {name} at batch {batch}, at most {100 * LIMIT:g} %:"
    if row is None:
        return f"{goal} not measured (`python benchmarks/abft.py --networks {name}`)."
    cost = row["overhead"] if row["cpu_overhead"] is None else row["cpu_overhead"]
    return f"{goal} {'met' if cost <= LIMIT else 'missed'}, {_percent(cost)} of CPU time."


def _find(whole: Sequence[Row], name: str, batch: int) -> Row | None:
    wanted = (name, batch, "row")
    return next((r for r in whole if (r["network"], r["batch"], r["scheme"]) == wanted), None)


def _layers(rows: Sequence[Row], name: str, batch: int) -> list[str]:
    """Each distinct product by itself, the costliest check first."""
    own = [r for r in rows if (r["network"], r["batch"]) == (name, batch) and r["layer"] != WHOLE]
    found = [{r["scheme"]: r for r in group} for group in _grouped(own, "layer").values()]
    found.sort(key=lambda by: -_added(by.get("row") or next(iter(by.values()))))
    total = sum(_added(by["row"]) for by in found if "row" in by)
    table = []
    kinds: Counter[str] = Counter()
    for by in found:
        first = next(iter(by.values()))
        added = _added(by["row"]) if "row" in by else 0.0
        kinds[_kind(first)] += added
        table.append(
            (
                f"{first['layer']} ({first['op']})",
                first["shape"],
                str(first["count"]),
                f"{first['base_us']:.0f}",
                *(_percent(by[s]["overhead"]) if s in by else "none" for s in ("row", "dup")),
                f"{100 * added / total:.0f} %" if total else "",
            )
        )
    shares = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in kinds.most_common() if total)
    return [
        f"### Products of {name}, batch {batch}",
        f"The cost of `row` by kind: {shares or 'none measured'}.",
        _table(
            ("product", "shape", "times", "µs", "`row`", "`dup`", "of the cost of `row`"), table
        ),
    ]


def _kind(row: Row) -> str:
    """`conv2d 3x3`: the operator, and the taps of a convolution's kernel."""
    weight = row["shape"].rpartition(" . ")[2].split("x")
    return f"{row['op']} {'x'.join(weight[2:])}" if "conv" in row["op"] else row["op"]


def _added(row: Row) -> float:
    return float(row["count"] * (row["protected_us"] - row["base_us"]))


def _gpu(rows: Sequence[Row], networks: Mapping[str, Row]) -> list[str]:
    if all(row.get("overhead") is None for row in rows):
        command = next((row["command"] for row in rows if "command" in row), GPU_COMMAND)
        return ["## GPU", f"Not measured: `{command}` on a GPU of compute capability 9.0."]
    measured = [row for row in rows if row.get("overhead") is not None]
    left = len(rows) - len(measured)
    what = f"{len(measured):,} rows of single products are in [abft.json](abft.json)"
    what += f", {left:,} more were not measured" if left else ""
    where = " and ".join(sorted({row["device"] for row in measured}))
    how = (
        f"{where}. Overheads against the fastest unprotected variant of the same kernels, sums over"
        f" a network's products; beside them the T4 figures of the SC'21 paper. {what}."
    )
    head = ("network", "products", "µs", "vendor's", *GPU_SCHEMES, "T4: global", "T4: guided")
    return [
        "## GPU",
        how,
        _table(head, [_gpu_row(name, one) for name, one in networks.items()]),
    ]


def _gpu_row(name: str, one: Row) -> tuple[str, ...]:
    paper = (one.get(f"paper_t4_{scheme}_percent") for scheme in ("global", "guided"))
    if "note" in one:
        return (name, str(one["layers"]), one["note"], "", *("" for _ in GPU_SCHEMES), "", "")
    return (
        name,
        str(one["layers"]),
        _number(one["base_us"]),
        _number(one["vendor_us"]),
        *(f"{one[f'{scheme}_percent']:+.1f} %" for scheme in GPU_SCHEMES),
        *("" if value is None else f"{value:+.1f} %" for value in paper),
    )


def _campaign(cells: Sequence[Row]) -> list[str]:
    parts = ["## Fault campaign"]
    if not any("injected" in cell for cell in cells):
        command = cells[0].get("command") if cells else "proa abft campaign"
        return [*parts, f"Not measured: `{command}`."]
    clean = sum(cell.get("clean_checks") or 0 for cell in cells)
    false = sum(cell.get("false_positives") or 0 for cell in cells)
    sums: dict[tuple[str, str, str, str], dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(COUNTS, 0)
    )
    for cell in cells:
        if cell.get("injected"):
            into = sums[cell["scheme"], cell["dtype"], cell["site"], cell["fault"]]
            for key in COUNTS:
                into[key] += cell.get(key) or 0
    table = [(*key, *(f"{found[name]:,}" for name in COUNTS)) for key, found in sums.items()]
    note = (
        f"{clean:,} clean checks, {false:,} false alarms. All distributions together; each by"
        " itself, per-bit tables and intervals: [abft-campaign.md](../abft-campaign.md)."
    )
    return [
        *parts,
        note,
        _table(("scheme", "dtype", "site", "fault", *COUNTS), table),
    ]


# --- text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
