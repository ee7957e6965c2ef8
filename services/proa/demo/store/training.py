"""Synchronous training: workers in threads, each with a replica and a connection of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from proa.demo.store.plan import WORKERS, Plan
from proa.embedding import ParityEmbeddingBag, pull_ahead
from proa.embedding.store import ParityStore
from proa.errors import ProaError
from proa.store.initial import Floats
from proa.store.pushing import Session
from proa.train.clicks import PlantedClicks
from proa.train.dlrm import Replica, one_thread

CALL_S_MAX = 120.0

Dense = dict[str, Floats]


@dataclass(frozen=True)
class Step:
    """at_s: when it was acknowledged, by time.monotonic. loss: mean over the workers."""

    number: int
    at_s: float
    loss: float


@dataclass
class Progress:
    """What has happened so far. `dense` is worker 0's, after the last step."""

    steps: list[Step] = field(default_factory=list)
    dense: Dense | None = None


class Team:
    """Workers that meet in every step. A worker that fails frees the others, which fail too."""

    def __init__(self, members: int) -> None:
        self._barrier = threading.Barrier(members)
        self._slots: list[Floats] = [np.zeros(0, np.float32)] * members

    def mean(self, worker: int, vector: Floats) -> Floats:
        """Over all workers, summed in the order of their numbers."""
        self._slots[worker] = vector
        self._barrier.wait()
        total = self._slots[0].copy()
        for other in self._slots[1:]:
            total += other
        self._barrier.wait()
        return total / np.float32(len(self._slots))

    def meet(self) -> bool:
        """Wait for all; true to one of them."""
        return self._barrier.wait() == 0

    def leave(self) -> None:
        """Somebody gave up."""
        self._barrier.abort()


@dataclass(frozen=True)
class Segment:
    """Steps `begin` to `end` - 1 of one session. `dense`: where the replicas begin; none: anew.

    before: called by worker 0 before each step, while no worker is in one.
    """

    address: str
    plan: Plan
    session: int
    begin: int
    end: int
    dense: Dense | None
    before: Callable[[int], None]


async def train(segment: Segment, progress: Progress) -> None:
    """Returns when all its steps were acknowledged. Errors: the first worker's that fails."""
    one_thread()
    team = Team(WORKERS)
    results = await asyncio.gather(
        *(asyncio.to_thread(_work, segment, progress, team, worker) for worker in range(WORKERS)),
        return_exceptions=True,
    )
    failed = [result for result in results if isinstance(result, BaseException)]
    # A broken barrier only says that another one failed.
    for error in sorted(failed, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        raise error


def _work(segment: Segment, progress: Progress, team: Team, worker: int) -> None:
    try:
        session = Session(segment.session, worker, WORKERS)
        with ParityStore(segment.address, session=session, timeout_s=CALL_S_MAX) as store:
            _steps(segment, progress, team, worker, store)
    except ProaError:
        team.leave()
        raise


def _steps(
    segment: Segment, progress: Progress, team: Team, worker: int, store: ParityStore
) -> None:
    plan = segment.plan
    bags = [ParityEmbeddingBag(store.table(name), mode="sum") for name in plan.tables]
    replica = Replica(bags, seed=plan.seed, learning_rate=plan.learning_rate, ahead=pull_ahead)
    if segment.dense is not None:
        replica.load(segment.dense)
    clicks = PlantedClicks(plan.rows, seed=plan.seed, batch=plan.batch)
    for number in range(segment.begin, segment.end):
        if worker == 0:
            progress.dense = replica.state()
            segment.before(number)
        team.meet()
        loss, gradients = replica.backward(clicks.batch(worker, number))
        replica.apply(team.mean(worker, gradients))
        store.step()
        store.flush()
        losses = team.mean(worker, np.array([loss], np.float32))
        if worker == 0:
            progress.steps.append(Step(number, time.monotonic(), float(losses[0])))
    if worker == 0:
        progress.dense = replica.state()
