"""What a frontend does with the verdicts of workers that check their own arithmetic."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.cluster import (
    Cluster,
    Frontend,
    Load,
    cluster,
    frontend,
    is_decodable,
    one_of_two_missing,
    until,
    write_spec,
)
from fakes.eventually import eventually
from fakes.source_fake import FakeSource, workers
from fakes.triton_fake import FakeTriton, images, linear
from proa import wire
from proa.client import AsyncClient
from proa.frontend import pool

CLEAN = (24, 0, 0, 0, 0.25, 1, -1, -1)
REPAIRED = (24, 1, 1, 0, math.inf, 1, 0, 3)
FAILED = (24, 2, 1, 0, math.nan, 1, 0, 3)
# A canary must not be the one that finds the fault which a test waits for.
QUIET_S = 600.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "QUARANTINE_POLL_S", 0.05)


def checking(count: int) -> list[FakeTriton]:
    found = [FakeTriton() for _ in range(count)]
    for worker in found:
        worker.verdict = CLEAN
    return found


async def ask(served: Cluster, seed: int = 0) -> Any:
    (image,) = images(1, batch=2, seed=seed)
    async with AsyncClient(served.address, deadline_s=5.0, retry=False) as client:
        answer = await client.infer("digits", {"image": image})
    assert list(answer.outputs) == ["logits"]
    assert np.allclose(answer.only, linear(image), rtol=1e-3, atol=1e-3)
    return answer


async def faulty_query(served: Cluster, worker: FakeTriton) -> None:
    """`worker` finds its next computation of a query to be wrong."""
    before = worker.failed
    worker.corrupt_next()
    seed = 0
    while worker.failed == before:
        assert (await ask(served, seed)).abft == "ok"  # another one's answer
        seed += 1


async def state_of(served: Cluster, index: int) -> str:
    return str((await served.status()).workers[index].state)


async def is_in(served: Cluster, index: int, state: str) -> bool:
    return (await state_of(served, index)).startswith(state)


async def test_the_verdict_comes_with_the_answer(tmp_path: Path):
    (worker,) = found = checking(1)
    async with cluster(tmp_path, "policy: none", fakes=found, canary_s=QUIET_S) as served:
        checks = await served.metric("proa_abft_checks_total", worker="w0")
        assert (await ask(served)).abft == "ok"
        assert await served.metric("proa_abft_checks_total", worker="w0") == checks + 24
        assert await served.metric("proa_abft_faults_total") == 0
        worker.verdict = REPAIRED
        assert (await ask(served)).abft == "repaired"
        assert await served.metric("proa_abft_faults_total", worker="w0", kind="repaired") == 1
        status = (await served.status()).workers[0]
        assert (status.checks, status.faults) == (checks + 48, 1)


async def test_a_worker_without_checks_has_no_verdict(tmp_path: Path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        assert (await ask(served)).abft is None
        assert "proa.abft" not in {one.name for one in served.workers[0].seen[-1].outputs}


@pytest.mark.parametrize(
    "garbage",
    [
        np.full((2, 8), math.nan),
        np.zeros((2, 8), np.float32),
        np.zeros((1, 3)),
        np.full((2, 8), 1e300),
        np.full((2, 8), b"\xff" * 64, object),
    ],
    ids=["nan", "fp32", "shape", "huge", "bytes"],
)
async def test_garbage_in_the_place_of_a_verdict_hurts_nobody(tmp_path: Path, garbage: Any):
    (worker,) = found = checking(1)
    async with cluster(tmp_path, "policy: none", fakes=found, canary_s=QUIET_S) as served:
        worker.verdict = garbage
        assert (await ask(served)).abft is None
        assert await served.states() == ["up"]


async def test_a_wrong_answer_is_had_from_another_worker(tmp_path: Path):
    found = checking(3)
    async with cluster(tmp_path, "policy: retry", fakes=found, canary_s=QUIET_S) as served:
        await faulty_query(served, found[0])
        assert await served.metric("proa_abft_faults_total", worker="w0", kind="failed") == 1
        await until(lambda: is_in(served, 0, "up"))


async def test_a_parity_row_that_is_wrong_counts_too(tmp_path: Path):
    found = checking(3)
    redundancy = "policy: parity, k: 2, patience: first"
    async with cluster(tmp_path, redundancy, fakes=found, canary_s=QUIET_S) as served:
        for worker in found:
            worker.corrupt_next(program="parity.0")
        async with Load(served.address) as load:
            await until(lambda: _faults(served, 1))
        assert not load.errors


async def _faults(served: Cluster, least: int) -> bool:
    return await served.metric("proa_abft_faults_total", kind="failed") >= least


async def test_a_worker_that_sends_what_it_calls_wrong_is_not_believed(tmp_path: Path):
    found = checking(3)
    async with cluster(tmp_path, "policy: retry", fakes=found, canary_s=QUIET_S) as served:
        found[0].verdict = FAILED
        for seed in range(6):
            assert (await ask(served, seed)).abft == "ok"
        assert await served.metric("proa_abft_faults_total", worker="w0", kind="failed") >= 1


async def test_a_wrong_answer_is_marked_where_the_spec_wants_it(tmp_path: Path):
    (worker,) = found = checking(1)
    protection = "mode: detect, onFault: answer"
    async with cluster(
        tmp_path, "policy: retry", fakes=found, protection=protection, canary_s=QUIET_S
    ) as served:
        worker.verdict = FAILED
        assert (await ask(served)).abft == "failed"
        assert await served.metric("proa_abft_faults_total", worker="w0", kind="failed") == 1


async def test_a_reconstruction_has_no_verdict(tmp_path: Path):
    async with cluster(
        tmp_path, "policy: parity, k: 2, patience: first", fakes=checking(3)
    ) as served:
        first, stuck = await one_of_two_missing(served)
        parameters = wire.get_parameters((await first).parameters)
        assert parameters["proa.source"] == "reconstructed"
        assert "proa.abft" not in parameters
        stuck.resume()


async def test_a_refused_answer_is_reconstructed(tmp_path: Path):
    """Where the retry finds its own answer wrong too, the rest of the group makes up for both."""
    redundancy = "policy: parity, groupMsMax: 1, idleReserve: 0, qualitySample: 0"
    async with cluster(
        tmp_path, redundancy, fakes=checking(3), latency_ms=60_000.0, canary_s=QUIET_S
    ) as served:
        first, stuck = await one_of_two_missing(served)
        await until(lambda: is_decodable(served))
        assert not first.done(), "an exact answer that is not late is waited for"
        for worker in served.workers:
            worker.verdict = FAILED
        stuck.resume()
        answer = await first
        parameters = wire.get_parameters(answer.parameters)
        assert parameters["proa.source"] == "reconstructed"
        assert "proa.abft" not in parameters
        image = images(2, seed=9)[0]
        logits = wire.read_response(answer)["logits"]
        assert np.allclose(logits, linear(image), rtol=1e-3, atol=1e-3)
        assert await served.metric("proa_abft_faults_total", kind="failed") >= 2


async def test_two_faults_take_a_worker_out_until_it_restarts(tmp_path: Path):
    found = checking(3)
    async with cluster(tmp_path, "policy: retry", fakes=found, canary_s=QUIET_S) as served:
        await faulty_query(served, found[1])
        await until(lambda: is_in(served, 1, "up"))
        await faulty_query(served, found[1])
        assert await state_of(served, 1) == "quarantined: 2 faults in 60 min"
        assert await served.metric("proa_abft_quarantined") == 1
        before = found[1].computed["deployed"]
        await eventually(lambda: found[1].computed["deployed"] > before + 3)  # its canary
        for seed in range(6):
            assert (await ask(served, seed)).worker != "w1"
        assert await state_of(served, 1) == "quarantined: 2 faults in 60 min"
        found[1].restart()
        await until(lambda: is_in(served, 1, "up"))
        assert await served.metric("proa_abft_quarantined") == 0
        async with Load(served.address) as load:
            await eventually(lambda: "w1" in {answer.worker for _, answer in load.answers})


async def test_another_package_starts_anew(tmp_path: Path):
    found = checking(3)
    protection = "quarantineAfter: 1"
    async with cluster(
        tmp_path, "policy: retry", fakes=found, canary_s=QUIET_S, protection=protection
    ) as served:
        await faulty_query(served, found[0])
        assert await is_in(served, 0, "quarantined: 1 fault ")
        found[0].package = "0ther"
        await until(lambda: is_in(served, 0, "up"))


async def test_who_leaves_and_joins_starts_anew(tmp_path: Path):
    fakes = checking(3)
    path = write_spec(tmp_path, "policy: retry", protection="quarantineAfter: 1")
    async with contextlib.AsyncExitStack() as stack:
        for worker in fakes:
            await stack.enter_async_context(worker)
        source = FakeSource(*workers(fakes))
        served = await stack.enter_async_context(
            frontend(source=source, specs=str(path), canary_s=0.1)
        )
        await until(lambda: are(served, ["up", "up", "up"]))
        fakes[2].corrupt_next()
        await until(lambda: are(served, ["up", "up", "quarantined"]))
        source.set(*workers(fakes[:2]))
        await until(lambda: are(served, ["up", "up"]))
        source.set(*workers(fakes))
        await until(lambda: are(served, ["up", "up", "up"]))
        assert await served.metric("proa_abft_quarantined") == 0


async def test_a_changed_spec_keeps_who_is_out(tmp_path: Path):
    fakes = checking(3)
    write_spec(tmp_path, "policy: retry", protection="quarantineAfter: 1")
    async with cluster(
        tmp_path, "policy: retry", fakes=fakes, canary_s=0.1, protection="quarantineAfter: 1",
        specs=str(tmp_path),
    ) as served:  # fmt: skip
        fakes[2].corrupt_next()
        await until(lambda: are(served, ["up", "up", "quarantined"]))
        write_spec(tmp_path, "policy: none", protection="quarantineAfter: 3")
        await until(lambda: has_policy(served, "none"))
        await until(lambda: are(served, ["up", "up", "quarantined"]))
        assert (await served.status()).workers[2].faults == 1


async def are(served: Frontend, states: list[str]) -> bool:
    return await served.states() == states


async def has_policy(served: Frontend, policy: str) -> bool:
    return (await served.status()).policy == policy


async def test_a_storm_stops_at_the_cap(tmp_path: Path):
    found = checking(4)
    async with cluster(tmp_path, "policy: retry", fakes=found, canary_s=0.1) as served:
        for worker in found:
            worker.verdict = REPAIRED
        async with Load(served.address) as load:
            await load.more(60)
            await until(lambda: _capped(served))
            await load.more(20)
        assert not load.errors
        assert load.right
        states = [worker.state.partition(":")[0] for worker in (await served.status()).workers]
        assert sorted(states) == ["quarantined", "up", "up", "up"]


async def _capped(served: Cluster) -> bool:
    return await served.metric("proa_abft_quarantine_capped_total") > 10


async def test_quarantine_ends_where_no_other_worker_is_left(tmp_path: Path):
    found = checking(2)
    protection = "quarantineAfter: 1"
    async with cluster(
        tmp_path, "policy: retry", fakes=found, canary_s=0.1, protection=protection
    ) as served:
        # Whoever finds it, query or canary: one fault is enough.
        found[0].corrupt_next()
        await until(lambda: is_in(served, 0, "quarantined"))
        await found[1].stop()
        await until(lambda: is_in(served, 0, "up"))
        assert (await ask(served)).worker == "w0"
