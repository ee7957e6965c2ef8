"""The GPU's part of docs/results/abft.md: what was measured, what was not, and the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abft_gpu_rows import COMMAND, DTYPES, FORMS, PRODUCT, SCHEMES
from gpu_abft.shapes import PAPER_T4, networks
from page_text import number, percent, share, table, verdict

NETWORK_MAX, DECODE_MAX = 5.0, 2.5  # per cent, of the guided choice
CLEAN_CHECKS_MIN = 10_000_000
FASTER_MIN = {"bf16x6": 1.8, "bf16x9": 1.2}  # times SGEMM
FASTER_AT = 8192
NOT_MEASURED = f"not measured (`{COMMAND}`)"
# Two schemes that cost the same, summed in another order.
SAME = 1e-6
Row = Mapping[str, Any]


def gpu_parts(rows: Sequence[Row], found: Row) -> list[str]:
    """`rows`: of abft.json, without those of the CPU. `found`: the record's other sections."""
    device = found.get("environment", {}).get("device")
    where = (
        f"{device}. Single products are in [abft.json](abft.json)."
        if device
        else f"Not measured: `{COMMAND}` on a GPU of compute capability 9.0."
    )
    parts = ["## GPU", where, "\n".join(_targets(found)), *_networks(found.get("networks", {}))]
    return [*parts, *_emulated(rows, found), *_calibration(found.get("calibration", []))]


def _targets(found: Row) -> list[str]:
    known = found.get("networks", {})
    decode = {layer.network for layer in networks() if "decode" in layer.network}
    lines = [
        _cost(f"guided, networks of the paper's table, at most {NETWORK_MAX:g} %", known,
              set(PAPER_T4), NETWORK_MAX),
        _cost(f"guided, decode shapes, at most {DECODE_MAX:g} %", known, decode, DECODE_MAX),
        _cheapest(known),
        _no_alarm(found.get("calibration", [])),
        *(_faster(name, least, found) for name, least in FASTER_MIN.items()),
    ]  # fmt: skip
    return [f"- {line}." for line in lines]


def _cost(goal: str, known: Mapping[str, Row], names: set[str], most: float) -> str:
    costs = {
        name: known[name]["guided_percent"]
        for name in names
        if "guided_percent" in known.get(name, {}) and "note" not in known[name]
    }
    if not costs:
        return f"{goal}: {NOT_MEASURED}"
    over = [f"{name} {percent(cost)}" for name, cost in sorted(costs.items()) if cost > most]
    worst = max(costs, key=lambda name: costs[name])
    detail = f"most {percent(costs[worst])} on {worst}"
    if over:
        detail = f"{len(over)} of {len(costs)} above it: {', '.join(over)}"
    left = len(names) - len(costs)
    rest = f"; {left} more not measured (`{COMMAND}`)" if left else ""
    return f"{goal}: {verdict(not over)}, {detail}{rest}"


def _cheapest(known: Mapping[str, Row]) -> str:
    goal = "guided never above the cheapest single scheme"
    sums = {
        name: (one["guided_percent"], min(one[f"{scheme}_percent"] for scheme in SCHEMES[:-1]))
        for name, one in known.items()
        if "guided_percent" in one
    }
    if not sums:
        return f"{goal}: {NOT_MEASURED}"
    over = [name for name, (guided, single) in sums.items() if guided > single + SAME]
    detail = f"above it on {', '.join(over)}" if over else f"on {len(sums)} networks"
    return f"{goal}: {verdict(not over)}, {detail}"


def _no_alarm(rows: Sequence[Row]) -> str:
    goal = f"no false positive in {CLEAN_CHECKS_MIN:,} clean checks"
    if not rows:
        return f"{goal}: {NOT_MEASURED}"
    clean = sum(one["clean_checks"] for one in rows)
    false = sum(one["false_positives"] for one in rows)
    if not false and clean < CLEAN_CHECKS_MIN:
        return f"{goal}: too few to tell, 0 in {clean:,}"
    return f"{goal}: {verdict(not false)}, {false:,} in {clean:,}"


def _faster(name: str, least: float, found: Row) -> str:
    goal = f"{name} at least {least:g} times as fast as SGEMM at {FASTER_AT}, its error no larger"
    times = {one["size"]: one["forms"] for one in found.get("emulated_times", [])}
    form = times.get(FASTER_AT, {}).get(name)
    errors = [one for one in found.get("emulated_errors", []) if name in one]
    if form is None or not errors:
        return f"{goal}: {NOT_MEASURED}"
    rate = form["times_sgemm"]
    worse = [one["distribution"] for one in errors if one[name] > one["sgemm"]]
    detail = f"{rate:.2f} times, error " + (f"larger on {', '.join(worse)}" if worse else "smaller")
    return f"{goal}: {verdict(rate >= least and not worse)}, {detail}"


def _networks(known: Mapping[str, Row]) -> list[str]:
    """Every network, also those that the record lacks."""
    counts: dict[str, int] = {}
    for layer in networks():
        counts[layer.network] = counts.get(layer.network, 0) + 1
    names = dict.fromkeys([*counts, *known])
    note = (
        "Against the fastest unprotected variant of the same kernels, sums over a network's"
        " products; beside them what the SC'21 paper has on a T4."
    )
    head = ("network", "products", "µs", "vendor's", *SCHEMES, "T4: global", "T4: guided")
    rows = [_network(name, known.get(name, {}), counts.get(name)) for name in names]
    return ["### Networks", note, table(head, rows)]


def _network(name: str, one: Row, count: int | None) -> tuple[str, ...]:
    paper = PAPER_T4.get(name, (None, None))
    layers = str(one.get("layers", count))
    note = one.get("note", "" if one else f"not measured: {COMMAND} --only '{name}'")
    if one.get("base_us") is None:
        return (name, layers, note, "", *("" for _ in SCHEMES), *map(percent, paper))
    missing = one.get("missing", [])
    measured = f"{len(missing)} not measured" if missing else ""
    return (
        name, f"{layers}, {measured}" if measured else layers,
        number(one["base_us"]), number(one["vendor_us"]),
        *(percent(one.get(f"{scheme}_percent")) for scheme in SCHEMES), *map(percent, paper),
    )  # fmt: skip


def _emulated(rows: Sequence[Row], found: Row) -> list[str]:
    own = [row for row in rows if row["network"] == PRODUCT]
    lines = []
    for row in own:
        measured = row["overhead"] is not None
        lines.append((
            row["shape"], row["scheme"],
            number(row["protected_us"]) if measured else f"not measured: {row['command']}",
            number(row["base_us"]), share(row["overhead"]),
        ))  # fmt: skip
    parts = [
        "### fp32 products",
        table(("shape", "made by", "µs", "SGEMM's µs", "against SGEMM"), lines),
    ]
    errors = found.get("emulated_errors", [])
    if errors:
        forms = ("sgemm", *(form for form in FORMS if form in errors[0]))
        head = ("data", "size", *forms)
        wrong = [
            (one["distribution"], str(one["size"]), *(_error(one.get(form)) for form in forms))
            for one in errors
        ]
        parts += ["Relative errors (Frobenius norm) against fp64.", table(head, wrong)]
    return parts


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _calibration(rows: Sequence[Row]) -> list[str]:
    title = "### Clean checks on a GPU"
    if not rows:
        return [title, f"Not measured: `{COMMAND}`."]
    lines = []
    for dtype in dict.fromkeys(one["dtype"] for one in rows):
        for kind in dict.fromkeys(one["distribution"] for one in rows):
            own = [one for one in rows if (one["dtype"], one["distribution"]) == (dtype, kind)]
            if own:
                worst = max(float(one["max_ratio"]) for one in own)
                lines.append((
                    DTYPES.get(dtype, dtype), kind, f"{sum(one['clean_checks'] for one in own):,}",
                    f"{sum(one['false_positives'] for one in own):,}",
                    f"{sum(one['cleared'] for one in own):,}", f"{worst:.2f}",
                ))  # fmt: skip
    head = ("dtype", "data", "checks", "false positives", "cleared", "worst ratio")
    return [title, table(head, lines)]
