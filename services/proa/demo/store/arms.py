"""Plays one arm on a store of its own: trains, kills, and recovers by parity or by checkpoint."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from proa.demo.store.plan import KILLED, SHARDS, Arm, K, Plan
from proa.demo.store.training import Dense, Progress, Segment, Step, train
from proa.demo.store.watch import Watch
from proa.embedding.store import ParityStore
from proa.errors import DataLost, PushIndeterminate, ShardUnavailable
from proa.local.processes import Sink
from proa.local.store import RunningStore, StoreOptions, agent_name, embedded_store, server_name
from proa.store.client import StoreClient
from proa.store.initial import Floats
from proa.store.tables import Table

WHOLE_S_MAX = 120.0


@dataclass(frozen=True)
class Span:
    """What kept the arm from new steps, in seconds from its first step on."""

    kind: str
    begin_s: float
    end_s: float


@dataclass
class Played:
    """What came of an arm. Times in seconds from the moment its training began.

    steps: as they were acknowledged; those that were replayed come twice. digest: of all tables and
    dense layers at the end. recovered_s: from the kill to full redundancy, or with checkpoints to
    the step at which the shard was lost.
    """

    arm: Arm
    steps: list[Step] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    killed_s: float | None = None
    recovered_s: float | None = None
    checkpoint_bytes: int = 0
    tables: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    dense: Dense = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of every byte that was trained."""
        total = hashlib.sha256()
        for _, (weights, state) in sorted(self.tables.items()):
            total.update(weights.tobytes())
            total.update(state.tobytes())
        for _, values in sorted(self.dense.items()):
            total.update(values.tobytes())
        return total.hexdigest()

    def losses(self) -> list[float]:
        """By step; of a step that was replayed, the one that counts: the last."""
        found = {step.number: step.loss for step in self.steps}
        return [found[number] for number in sorted(found)]

    def spent(self, kind: str) -> float:
        """Seconds in spans of a kind."""
        return sum(span.end_s - span.begin_s for span in self.spans if span.kind == kind)


async def play(arm: Arm, plan: Plan, out: Path, sink: Sink) -> Played:
    """All steps of the plan. Errors: ProaError when the store or the training cannot go on."""
    options = StoreOptions(
        run_dir=out / f"run-{arm.name}", port=0, admin_port=0, k=K, r=arm.r, shards=SHARDS
    )
    async with embedded_store(options, sink=sink) as running:
        await running.supervisor.ready()
        async with StoreClient(running.topology.address) as client:
            await asyncio.gather(
                *(client.create_table(Table(n, **options)) for n, options in plan.tables.items())
            )
        async with _watched(running.topology.address) as watch:
            return await _Play(arm, plan, out, running, watch).play()


@asynccontextmanager
async def _watched(address: str) -> AsyncIterator[Watch]:
    watch = Watch(address)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Play:
    def __init__(
        self, arm: Arm, plan: Plan, out: Path, running: RunningStore, watch: Watch
    ) -> None:
        self._arm, self._plan, self._out = arm, plan, out
        self._running, self._watch = running, watch
        self._loop = asyncio.get_running_loop()
        self._progress = Progress()
        self._played = Played(arm)
        self._start = 0.0
        self._sessions = 0
        self._saved: int | None = None  # the step at which the last checkpoint was taken

    async def play(self) -> Played:
        plan, played = self._plan, self._played
        self._start = self._now()
        try:
            await self._train(0, None)
        except (DataLost, ShardUnavailable, PushIndeterminate):
            if not (self._arm.checkpoints and played.killed_s is not None):
                raise
            await self._replay()
        if self._arm.killed and not self._arm.checkpoints:
            async with asyncio.timeout(WHOLE_S_MAX):
                await self._watch.whole.wait()
            assert self._watch.whole_at is not None
            assert played.killed_s is not None
            played.recovered_s = self._since(self._watch.whole_at) - played.killed_s
        assert self._progress.dense is not None
        played.steps = [
            Step(one.number, self._since(one.at_s), one.loss) for one in self._progress.steps
        ]
        played.dense = self._progress.dense
        played.tables = await asyncio.to_thread(self._export)
        assert len(played.losses()) == plan.steps
        return played

    async def _train(self, begin: int, dense: Dense | None) -> None:
        self._sessions += 1
        segment = Segment(
            self._running.topology.address, self._plan, self._sessions, begin, self._plan.steps,
            dense, self._before,
        )  # fmt: skip
        await train(segment, self._progress)

    def _before(self, step: int) -> None:
        """In the thread of worker 0, which no other worker is ahead of."""
        due = self._arm.checkpoints and step % self._plan.checkpoint_every == 0
        if due and step != self._saved:
            self._save(step)
        if step == self._plan.kill_at and self._arm.killed and self._played.killed_s is None:
            self._played.killed_s = self._since(self._now())
            self._loop.call_soon_threadsafe(self._kill)

    def _kill(self) -> None:
        self._watch.lost(KILLED)
        self._running.supervisor.kill(server_name(KILLED))
        self._running.supervisor.kill(agent_name(KILLED))

    # --- by checkpoint

    def _save(self, step: int) -> None:
        """Everything that was trained, to the disk; training waits."""
        begin = self._now()
        assert self._progress.dense is not None
        values: dict[str, Floats] = dict(self._progress.dense)
        for name, (weights, state) in self._export().items():
            values[f"{name}.weight"], values[f"{name}.state"] = weights, state
        fresh = self._out / "checkpoint.new"
        with fresh.open("wb") as file:
            np.savez(file, **values)
            file.flush()
        fresh.replace(self._checkpoint)
        self._played.checkpoint_bytes = self._checkpoint.stat().st_size
        self._saved = step
        self._span("checkpoint", begin)

    async def _replay(self) -> None:
        """Wait for a new, empty shard, load the last checkpoint, go on from there."""
        played = self._played
        assert played.killed_s is not None
        assert self._saved is not None
        async with asyncio.timeout(WHOLE_S_MAX):
            await self._watch.whole.wait()
        played.spans.append(Span("down", played.killed_s, self._since(self._now())))
        begin = self._now()
        dense = await asyncio.to_thread(self._load)
        self._span("reload", begin)
        again = self._now()
        await self._train(self._saved, dense)
        # The step that was lost with the shard is the first that nobody had seen done.
        end = next(
            s.at_s for s in self._progress.steps
            if s.at_s > again and s.number == self._plan.kill_at - 1
        )  # fmt: skip
        played.spans.append(Span("replay", self._since(again), self._since(end)))
        played.recovered_s = self._since(end) - played.killed_s

    def _load(self) -> Dense:
        with (
            np.load(self._checkpoint) as values,
            ParityStore(self._running.topology.address) as store,
        ):
            for name in self._plan.tables:
                store.load(name, values[f"{name}.weight"], values[f"{name}.state"])
            return {name: values[name] for name in ("weights", "squares")}

    @property
    def _checkpoint(self) -> Path:
        return self._out / "checkpoint.npz"

    def _export(self) -> dict[str, tuple[Floats, Floats]]:
        with ParityStore(self._running.topology.address) as store:
            return {name: store.export(name) for name in self._plan.tables}

    # --- time

    def _now(self) -> float:
        return time.monotonic()

    def _since(self, at: float) -> float:
        return at - self._start

    def _span(self, kind: str, begin: float) -> None:
        self._played.spans.append(Span(kind, self._since(begin), self._since(self._now())))


def differing(one: Played, other: Played) -> Mapping[str, int]:
    """Table or dense vector -> floats whose bits differ; those that are the same are left out."""
    pairs = {name: (one.tables[name], other.tables[name]) for name in one.tables}
    pairs |= {name: ((one.dense[name],) * 2, (other.dense[name],) * 2) for name in one.dense}
    counts = {
        name: sum(
            int((a.view(np.uint32) != b.view(np.uint32)).sum()) for a, b in zip(*pair, strict=True)
        )
        for name, pair in pairs.items()
    }
    return {name: count for name, count in counts.items() if count}
