"""docs/results/abft.md from what docs/results/abft.json has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from abft_gpu_page import gpu_parts
from page_text import share, table, verdict

WHOLE, LIMIT = "all", 0.15
LIMITED = (("resnet-50", 8), ("transformer-block", 8))
P99_RATIO_MAX = 2.0
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
        *_serving(tree["serving"]),
        *gpu_parts(gpu, tree["gpu"]),
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
        table(
            ("network", "batch", "unprotected ms", *_both("row"), *_both("dup")),
            [_network_row(group) for group in _grouped(whole, "network", "batch").values()],
        ),
        "\n".join(_target(whole, name, batch) for name, batch in LIMITED),
        "### What is checked",
        table(
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
            share(row["cpu_overhead"]),
            f"{share(row['overhead'])} ({100 * low:+.1f} to {100 * high:+.1f})",
        ]
    return tuple(cells)


def _target(whole: Sequence[Row], name: str, batch: int) -> str:
    row = _find(whole, name, batch)
    goal = f"- `row` on {name} at batch {batch}, at most {100 * LIMIT:g} %:"
    if row is None:
        return f"{goal} not measured (`python benchmarks/abft.py --networks {name}`)."
    cost = row["overhead"] if row["cpu_overhead"] is None else row["cpu_overhead"]
    return f"{goal} {'met' if cost <= LIMIT else 'missed'}, {share(cost)} of CPU time."


def _find(whole: Sequence[Row], name: str, batch: int) -> Row | None:
    wanted = (name, batch, "row")
    return next((r for r in whole if (r["network"], r["batch"], r["scheme"]) == wanted), None)


def _layers(rows: Sequence[Row], name: str, batch: int) -> list[str]:
    """Each distinct product by itself, the costliest check first."""
    own = [r for r in rows if (r["network"], r["batch"]) == (name, batch) and r["layer"] != WHOLE]
    found = [{r["scheme"]: r for r in group} for group in _grouped(own, "layer").values()]
    found.sort(key=lambda by: -_added(by.get("row") or next(iter(by.values()))))
    total = sum(_added(by["row"]) for by in found if "row" in by)
    lines = []
    kinds: Counter[str] = Counter()
    for by in found:
        first = next(iter(by.values()))
        added = _added(by["row"]) if "row" in by else 0.0
        kinds[_kind(first)] += added
        lines.append(
            (
                f"{first['layer']} ({first['op']})",
                first["shape"],
                str(first["count"]),
                f"{first['base_us']:.0f}",
                *(share(by[s]["overhead"]) if s in by else "none" for s in ("row", "dup")),
                f"{100 * added / total:.0f} %" if total else "",
            )
        )
    shares = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in kinds.most_common() if total)
    return [
        f"### Products of {name}, batch {batch}",
        f"The cost of `row` by kind: {shares or 'none measured'}.",
        table(("product", "shape", "times", "µs", "`row`", "`dup`", "of the cost of `row`"), lines),
    ]


def _kind(row: Row) -> str:
    """`conv2d 3x3`: the operator, and the taps of a convolution's kernel."""
    weight = row["shape"].rpartition(" . ")[2].split("x")
    return f"{row['op']} {'x'.join(weight[2:])}" if "conv" in row["op"] else row["op"]


def _added(row: Row) -> float:
    return float(row["count"] * (row["protected_us"] - row["base_us"]))


def _serving(found: Row) -> list[str]:
    """Answers of real workers while bits flip in their products."""
    parts = ["## Answers under bit flips"]
    if "requests" not in found:
        return [*parts, f"Not measured: `{found['command']}`."]
    answers, undetected = found["answers"], found["undetected"]
    same, other = answers.get("repaired", 0), answers.get("repaired and different", 0)
    repaired, ratio = same + other, found["p99_ratio"]
    worst = max((one["of_allowed"] for one in undetected), default=0.0)
    how = (
        f"{found['model']}, real tritonserver processes, a bit of an accumulator flipped at"
        f" {100 * found['flips_expected'] / found['requests']:g} % of {found['requests']:,}"
        f" requests. {repaired} answers were repaired, {same} of them to the clean ones' bits;"
        f" {len(undetected)} differ from them and say nothing, {answers.get('failed', 0)} failed."
    )
    beyond = found["undetected_beyond_allowed"]
    within = f"{verdict(not beyond)}, {beyond} beyond; the worst has {worst:.2g} of it."
    lines = [f"- each answer within what the layers' limits allow, or marked: {within}"]
    goal = f"p99 of a repaired answer, at most {P99_RATIO_MAX:g} times the clean one"
    if ratio is None:
        lines.append(f"- {goal}: not measured, none was repaired.")
    else:
        times = f"{found['repaired_p99_ms']:.1f} ms and {found['clean_p99_ms']:.1f} ms"
        surely = found.get("p99_ratio_least")
        least = f"; {surely:.2f} at least, with 95 % confidence" if surely else ""
        lines.append(
            f"- {goal}: {verdict(ratio <= P99_RATIO_MAX)}, {ratio:.2f} times ({times}; of"
            f" {repaired} answers the p99 is one of the slowest{least})."
        )
    rows = [(str(o["request"]), f"{o['off_by']:.1e}", f"{o['of_allowed']:.1e}") for o in undetected]
    what = "Those that differ and say nothing: their largest difference, as share of the allowed."
    head = ("request", "off by", "of allowed")
    listed = [what, table(head, rows)] if rows else []
    return [*parts, how, "\n".join(lines), *listed]


def _campaign(cells: Sequence[Row]) -> list[str]:
    parts = ["## Fault campaign"]
    counted = [cell for cell in cells if "injected" in cell]
    if not counted:
        command = cells[0].get("command") if cells else "proa abft campaign"
        return [*parts, f"Not measured: `{command}`."]
    for device in dict.fromkeys(cell.get("device") for cell in counted):
        own = [cell for cell in counted if cell.get("device") == device]
        clean = sum(cell.get("clean_checks") or 0 for cell in own)
        false = sum(cell.get("false_positives") or 0 for cell in own)
        on = f"On {device}. " if device else ""
        parts += [
            f"{on}{clean:,} clean checks, {false:,} false alarms.",
            table(("operator", "dtype", "site", "fault", *COUNTS), _summed(own)),
        ]
    note = (
        "All data together; faults one by one for accumulators of linear layers, elsewhere all"
        " together. Located: of so many alarms that were tried one at a time. Each (dtype, data,"
        " operator, site, fault) by itself is in [abft.json](abft.json); per-bit tables, intervals"
        " and a real model in [abft-campaign.md](abft-campaign.md)."
    )
    return [parts[0], note, *parts[1:]]


def _summed(cells: Sequence[Row]) -> list[tuple[str, ...]]:
    sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for cell in cells:
        if cell.get("injected"):
            own = cell.get("op", "linear") == "linear" and cell["site"] == "accumulator"
            fault = cell["fault"] if own and cell["scheme"] != "dup" else "all"
            fault = "bit" if fault.startswith("bit ") else fault  # one object a bit, on a GPU
            operator = f"{cell.get('op', 'linear')}.{cell['scheme']}"
            into = sums[operator, cell["dtype"], cell["site"], fault]
            into.update({key: cell.get(key) or 0 for key in COUNTS})
            # On a GPU each fault is alone, and each alarm tells a place.
            alone = cell["detected"] if cell["site"] == "accumulator" else 0
            into["located_of"] += cell.get("located_of", alone if "device" in cell else 0)
    return [
        (
            *key,
            *(f"{found[name]:,}" for name in ("injected", "visible", "detected")),
            f"{found['located']:,} of {found['located_of']:,}" if found["located_of"] else "",
            f"{found['corrected']:,}",
        )
        for key, found in sums.items()
    ]


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
