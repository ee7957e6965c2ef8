"""`proa store drill`: shards are killed while rows are trained, and every byte is compared.

See `proa.store.trainer` for what is compared with what.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from proa.api.v1 import store_pb2
from proa.errors import ProaError, Unavailable
from proa.local.store import (
    COORDINATOR,
    RunningStore,
    StoreOptions,
    agent_name,
    asked,
    embedded_store,
    server_name,
)
from proa.store.client import StoreClient
from proa.store.optimisers import RowWiseAdagrad
from proa.store.tables import Table
from proa.store.trainer import Compared, Trainer

STEPS_BETWEEN = 5
RECOVERY_S_MAX = 120.0
PUSH_S_MAX = 60.0
KINDS = ("server", "agent", "server", "coordinator", "both")


@dataclass(frozen=True)
class DrillOptions:
    """rows, dim: of the table; batch: rows of a step; kills: how many, one after the other, of
    processes of up to r shards at once."""

    run_dir: Path
    k: int = 2
    r: int = 1
    shards: int = 0
    rows: int = 20_000
    dim: int = 16
    batch: int = 256
    workers: int = 2
    kills: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Kill:
    """What was killed; seconds until everything was whole again; steps acknowledged meanwhile."""

    processes: tuple[str, ...]
    recovery_s: float
    steps: int
    rows_decoded: int


@dataclass
class Verdict:
    """wrong: rows that differed from the copy, or were lost, in a pull or in the end; parity_wrong:
    parity blocks that are not the sum of their data."""

    kills: list[Kill] = field(default_factory=list)
    steps: int = 0
    rows_pushed: int = 0
    rows_compared: int = 0
    wrong: int = 0
    parity_wrong: int = 0
    scrubbed: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.scrubbed and self.steps and not self.wrong and not self.parity_wrong)

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {"passed": self.passed, **asdict(self)}


async def _train(trainer: Trainer, address: str, verdict: Verdict, stop: asyncio.Event) -> None:
    async with StoreClient(address, timeout_s=PUSH_S_MAX) as client:
        while not stop.is_set():
            await trainer.step(client)
            _count(verdict, trainer.compared())
            verdict.steps += 1
            verdict.rows_pushed += min(trainer.batch, len(trainer.ids))


def _count(verdict: Verdict, compared: Compared) -> None:
    verdict.rows_compared += compared.rows
    verdict.wrong += compared.wrong + compared.lost


async def drill(options: DrillOptions, tell: Callable[[str], None]) -> Verdict:
    """`tell`: a line of what is going on. Errors: ProaError."""
    verdict = Verdict()
    store_options = StoreOptions(
        run_dir=options.run_dir, port=0, admin_port=0, k=options.k, r=options.r,
        shards=options.shards,
    )  # fmt: skip
    async with embedded_store(store_options) as store:
        await store.supervisor.ready()
        address = store.topology.address
        table = Table("drill", options.rows, options.dim, RowWiseAdagrad(0.1))
        async with StoreClient(address) as client:
            await client.create_table(table)
            trainers = [
                Trainer(
                    table, np.arange(number, options.rows, options.workers), options.batch,
                    (options.seed, number),
                )
                for number in range(options.workers)
            ]  # fmt: skip
            stop = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    for trainer in trainers:
                        group.create_task(_train(trainer, address, verdict, stop))
                    await _steps(verdict, STEPS_BETWEEN)
                    await _kills(options, store, verdict, tell)
                    stop.set()
            except* ProaError as failed:
                raise failed.exceptions[0] from None
            except* TimeoutError:
                raise Unavailable(f"the store did not recover in {RECOVERY_S_MAX:g} s") from None
            tell("comparing every byte")
            for trainer in trainers:
                await trainer.check(client)
                _count(verdict, trainer.compared())
        await _scrub(address, verdict)
    return verdict


async def _kills(
    options: DrillOptions, store: RunningStore, verdict: Verdict, tell: Callable[[str], None]
) -> None:
    chance = random.Random(options.seed)  # noqa: S311  # which shard dies next is no secret
    count = len(store.topology.directories)
    for number in range(options.kills):
        kind = KINDS[number % len(KINDS)]
        shards = chance.sample(range(count), max(1, options.r) if kind != COORDINATOR else 1)
        names = {
            "server": [server_name(s) for s in shards],
            "agent": [agent_name(s) for s in shards],
            "both": [name(s) for s in shards for name in (agent_name, server_name)],
            "coordinator": [COORDINATOR],
        }[kind]
        tell(f"kill -9 {' '.join(names)}")
        start, steps = asyncio.get_running_loop().time(), verdict.steps
        for name in names:
            store.supervisor.kill(name)
        await _steps(verdict, 1)
        decoded = await _recovered(store)
        took_s = asyncio.get_running_loop().time() - start
        kill = Kill(tuple(names), round(took_s, 3), verdict.steps - steps, decoded)
        verdict.kills.append(kill)
        tell(f"  whole again after {took_s:.1f} s; {kill.steps} steps meanwhile")
        await _steps(verdict, STEPS_BETWEEN)


async def _steps(verdict: Verdict, count: int) -> None:
    """Wait until so many more are acknowledged."""
    end = verdict.steps + count
    async with asyncio.timeout(RECOVERY_S_MAX):
        while verdict.steps < end:  # noqa: ASYNC110  # workers count
            await asyncio.sleep(0.01)


async def _recovered(store: RunningStore) -> int:
    """Wait until every shard serves and nothing is behind; rows decoded meanwhile."""
    request = store_pb2.RecoverRequest()
    done = 0
    async with asyncio.timeout(RECOVERY_S_MAX):
        while True:
            await store.supervisor.ready()
            try:
                async for progress in asked(
                    store.topology.address, lambda stub: stub.Recover(request)
                ):
                    done = max(done, int(progress.rows_done))
                    if progress.done:
                        return done
            except Unavailable:
                await asyncio.sleep(0.1)  # the coordinator is the one that was killed


async def _scrub(address: str, verdict: Verdict) -> None:
    async for progress in asked(address, lambda stub: stub.Scrub(store_pb2.ScrubRequest())):
        verdict.wrong += sum(len(one.rows) for one in progress.findings if one.kind == "crc")
        verdict.parity_wrong = progress.stripes_bad
        verdict.scrubbed = progress.done and not progress.stripes_unread
