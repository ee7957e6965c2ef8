"""A partition between the frontend and a worker: nobody waits for it, and it heals."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from fakes.cluster import Load, cluster, until
from proa.client.reports import read_report
from proa.errors import EnvironmentLacks
from proa.rpc import Channels
from proa_chaos.experiment import Choice, Fault
from proa_chaos.inband import InBand
from proa_chaos.plan import Hit
from proa_chaos.selection import ROLE, Target


@asynccontextmanager
async def in_band():
    channels = Channels(message_bytes_max=1 << 20)
    try:
        yield InBand(channels, "test", 0)
    finally:
        await channels.close()


def cut(served, worker: str) -> Hit:
    frontend = Target("frontend", "frontend", served.address, labels={ROLE: "frontend"})
    other = Target(worker, worker, labels={ROLE: "worker"})
    fault = Fault("cut", "partition", Choice(), peer=Choice())
    return Hit("0.0", fault, frontend, 0.0, 60.0, other)


async def test_a_worker_that_is_cut_off_is_taken_out_and_comes_back(tmp_path):
    fast = {"canary_s": 0.1, "canary_timeout_s": 0.3}
    async with cluster(tmp_path, faults=True, **fast) as served, in_band() as chaos:
        hit = cut(served, "w1")

        async def is_out() -> bool:
            return (await served.states())[1] == "suspected"

        async def all_up() -> bool:
            return await served.states() == ["up"] * 4

        async with Load(served.address) as load:
            await load.more(20)
            await chaos.inject(hit, 60.0)
            await until(is_out)
            await load.more(20)
            assert (await served.states()).count("up") == 3
            assert served.workers[1].computed["deployed"] > 0, "the worker itself is well"
            await chaos.clear(hit)
            await until(all_up)
            await load.more(20)
        assert load.errors == []
        assert load.right


async def faults_of(served):
    """What a watcher sees: action and target of the faults, and whether they act."""
    channels = Channels(message_bytes_max=1 << 20)
    report = await read_report(channels(served.address, "frontend"), timeout_s=5.0)
    await channels.close()
    return [(f.action, f.target, f.end_unix_ms > report.unix_ms) for f in report.faults]


async def test_who_watches_a_frontend_sees_faults_that_act_elsewhere(tmp_path):
    async with cluster(tmp_path, workers=1, faults=True) as served, in_band() as chaos:
        partition = cut(served, "w0")
        frontends = [partition.target]
        slow = Hit("1.0", Fault("slow", "slow", Choice()), Target("w0", "w0"), 0.0, 60.0)
        await chaos.announce(frontends, slow, 60.0)
        await chaos.announce(frontends, partition, 60.0)
        assert await faults_of(served) == [("slow", "w0", True), ("partition", "w0", True)]
        await chaos.announce(frontends, slow, 0.0)
        assert await faults_of(served) == [("slow", "w0", False), ("partition", "w0", True)]


async def test_a_frontend_that_cannot_be_told_is_no_error(tmp_path, caplog):
    caplog.set_level("INFO", "proa_chaos")
    async with cluster(tmp_path, workers=1) as served, in_band() as chaos:
        hit = cut(served, "w0")
        nobody = Target("gone", "gone", "127.0.0.1:1", labels={ROLE: "frontend"})
        await chaos.announce([hit.target, nobody], hit, 60.0)
        assert await faults_of(served) == []
    assert "frontend was not told of cut: partition" in caplog.text
    assert "gone was not told" in caplog.text


async def test_a_frontend_without_fault_injection_takes_none(tmp_path):
    async with cluster(tmp_path, workers=1) as served, in_band() as chaos:
        with pytest.raises(EnvironmentLacks, match="frontend takes no faults"):
            await chaos.active(cut(served, "w0").target)
