"""The load of the cluster tests, and its account, on a real frontend over fake workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from cluster.traffic import Account, Traffic, with_proa, with_triton
from fakes.cluster import cluster
from fakes.eventually import eventually
from fakes.triton_fake import images
from proa.client import AsyncClient, Unavailable

QUERIES = np.stack([one[np.newaxis] if one.ndim == 3 else one for one in images(8)])


async def test_every_query_is_answered_and_accounted_for(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served, AsyncClient(served.address) as client:
        async with Traffic(with_proa(client, "digits", "image", QUERIES), 50.0) as traffic:
            await traffic.more(20)
        traffic.account.check()
        assert set(traffic.account.sources) <= {"worker", "hedge", "retry", "reconstructed"}
        assert 20 <= traffic.account.sent == traffic.account.answered


async def test_a_worker_that_goes_costs_no_query(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served, AsyncClient(served.address, deadline_s=5.0) as client:
        async with Traffic(with_proa(client, "digits", "image", QUERIES), 50.0) as traffic:
            await traffic.more(10)
            await served.workers[0].__aexit__(None, None, None)
            await traffic.more(20)
        traffic.account.check()


async def test_triton_s_client_is_accounted_for_alike(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        client = triton.InferenceServerClient(served.address)
        async with Traffic(with_triton(client, "digits", "image", QUERIES), 50.0) as traffic:
            await traffic.more(10)
        await client.close()
        traffic.account.check()
        assert "worker" in traffic.account.sources


async def test_a_failure_is_named(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        ours = AsyncClient(served.address)
        theirs = triton.InferenceServerClient(served.address)
        for ask in (
            with_proa(ours, "unknown", "image", QUERIES),
            with_triton(theirs, "unknown", "image", QUERIES),
        ):
            async with Traffic(ask, 50.0) as traffic:
                await eventually(lambda seen=traffic.account: len(seen.failures) >= 3)
            assert traffic.account.answered == 0
            with pytest.raises(AssertionError, match=r"of \d+ queries failed: #0: .*unknown"):
                traffic.account.check()
        await ours.close()
        await theirs.close()


async def test_a_slow_answer_delays_no_other_query() -> None:
    gate = asyncio.Event()

    async def ask(number: int) -> str:
        if number == 0:
            await gate.wait()
        return "worker"

    async with Traffic(ask, 200.0) as traffic:
        await traffic.more(10)  # though the first is still open
        gate.set()
    traffic.account.check()


async def test_beyond_the_limit_a_query_counts_as_failed() -> None:
    gate = asyncio.Event()

    async def ask(_number: int) -> str:
        await gate.wait()
        raise Unavailable("gone")

    async with Traffic(ask, 200.0, open_max=2) as traffic:
        await eventually(lambda: len(traffic.account.failures) >= 3)
        assert {error for _, error in traffic.account.failures} == {"2 queries are open"}
        gate.set()
    assert [number for number, error in traffic.account.failures if "gone" in error][:2] == [0, 1]


def test_a_query_that_was_lost_is_no_answer() -> None:
    with pytest.raises(AssertionError):
        Account(sent=1).check()
