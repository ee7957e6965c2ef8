"""When a worker restarts Triton for a renewed certificate: in its turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from fakes.eventually import eventually
from fakes.pki import Authority, Secret
from proa.errors import DeadlinePassed
from proa.runtime.tls import TlsFiles
from proa.worker.renewal import Renewal, Renewed, Turn

CA = Authority()


class Worker:
    """A worker's certificate and its renewals."""

    def __init__(self, folder: Path, turn: Turn | None = None, *, spread_s: float = 0.0) -> None:
        self.secret = Secret(folder)
        self.renew()
        self.tls = TlsFiles(folder, "PROA_WORKER_TLS_DIR", "worker")
        self.renewal = Renewal(self.tls, turn, spread_s=spread_s, pod=folder.name)

    def renew(self) -> None:
        self.secret.put(CA.issue("proa-worker"), CA)


class Turns:
    """A Lease of this process: one holder at a time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.most = 0
        self.now = 0

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        async with self.lock, asyncio.timeout(60):  # which insists on its own task
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                yield
            finally:
                self.now -= 1


async def is_renewed(due: Awaitable[None]) -> None:
    with pytest.raises(Renewed):
        await asyncio.wait_for(due, 5)


async def test_nothing_is_due_without_a_renewal(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "w")
    due = asyncio.create_task(worker.renewal.due())
    assert not worker.tls.reload()
    done, _ = await asyncio.wait([due], timeout=0.05)
    assert not done
    worker.renew()
    worker.tls.reload()
    await is_renewed(due)
    worker.renewal.starting()
    again = asyncio.create_task(worker.renewal.due())
    done, _ = await asyncio.wait([again], timeout=0.05)
    assert not done, "Triton runs with the certificate of now"
    again.cancel()


async def test_without_tls_never(tmp_path: Path) -> None:
    renewal = Renewal(None, None, spread_s=0.0, pod="w")
    tasks = [asyncio.create_task(renewal.due()), asyncio.create_task(renewal.follow())]
    done, _ = await asyncio.wait(tasks, timeout=0.05)
    assert not done
    for task in tasks:
        task.cancel()
    await renewal.done()


async def test_one_at_a_time_with_a_lease(tmp_path: Path) -> None:
    turns = Turns()
    workers = [Worker(tmp_path / f"w{i}", turns) for i in range(4)]
    restarted = 0

    async def live(worker: Worker) -> None:
        nonlocal restarted
        await is_renewed(worker.renewal.due())
        assert turns.now == 1
        restarted += 1
        await worker.renewal.done()  # another task than the one that waited

    for worker in workers:
        worker.renew()
        worker.tls.reload()
    await asyncio.gather(*(live(worker) for worker in workers))
    assert restarted == 4
    assert turns.most == 1
    assert turns.now == 0


async def test_a_turn_that_cannot_be_had_is_a_delay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.asynccontextmanager
    async def nobody() -> AsyncIterator[None]:
        raise DeadlinePassed("the Lease is held by another")
        yield

    worker = Worker(tmp_path / "w", nobody)
    worker.renew()
    worker.tls.reload()
    await is_renewed(worker.renewal.due())
    assert "restarts after a delay: the Lease is held by another" in caplog.text
    await worker.renewal.done()


async def test_a_worker_that_ends_gives_up_waiting(tmp_path: Path) -> None:
    turns = Turns()
    worker = Worker(tmp_path / "w", turns)
    worker.renew()
    worker.tls.reload()
    async with turns():
        due = asyncio.create_task(worker.renewal.due())
        await eventually(lambda: worker.renewal._holder is not None)
        due.cancel()
        await asyncio.wait([due])
        await worker.renewal.done()
    assert turns.now == 0


def test_pods_have_delays_of_their_own(tmp_path: Path) -> None:
    renewals = [Renewal(None, None, spread_s=300.0, pod=f"worker-{i}") for i in range(5)]
    delays = [renewal._dice.uniform(0.0, 300.0) for renewal in renewals]
    again = Renewal(None, None, spread_s=300.0, pod="worker-0")
    assert len(set(delays)) == 5
    assert again._dice.uniform(0.0, 300.0) == delays[0]
