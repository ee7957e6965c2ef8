"""Each redundancy policy against a worker that fails, is slow, is stuck, or dies."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from fakes.cluster import Load, cluster, is_decodable, one_of_two_missing, until
from fakes.eventually import eventually
from proa.errors import BadAnswer, Unavailable

# Nothing waits for the clock: every idle worker may run redundant work, no group is sampled.
EAGER = "groupMsMax: 1, idleReserve: 0, qualitySample: 0"
NEVER_LATE_MS = 60_000.0


def source(response):
    return response.parameters["proa.source"].string_param


async def states_are(served, *wanted):
    return await served.states() == list(wanted)


@pytest.mark.parametrize("policy", ["retry", "replicate", "hedge", "parity", "auto"])
async def test_a_failed_attempt_is_made_again_elsewhere(tmp_path, policy):
    async with cluster(tmp_path, f"policy: {policy}, {EAGER}", workers=3) as served:
        async with Load(served.address) as load:
            await load.more(30)
            served.workers[0].fail_next(3, "INTERNAL")
            await eventually(lambda: served.workers[0].failed == 3)
            await load.more(10)
        assert load.errors == []
        assert load.right
        assert policy != "retry" or load.sources == {"worker", "retry"}


async def test_policy_none_passes_a_failure_on(tmp_path):
    async with cluster(tmp_path, f"policy: none, {EAGER}", workers=3) as served:
        served.workers[0].fail_next(1, "INTERNAL")
        async with Load(served.address) as load:
            await eventually(lambda: load.errors)
            await load.more(10)
        assert [type(error) for error in load.errors] == [BadAnswer]
        assert "w0" in str(load.errors[0])
        assert load.sources == {"worker"}


RESCUED_BY = {
    "none": set(),
    "retry": {"retry"},
    "replicate": {"replica"},
    "hedge": {"hedge"},
    "parity": {"reconstructed"},
    "auto": {"hedge", "reconstructed"},
}


async def test_a_stuck_worker_is_survived_suspected_and_used_again(tmp_path):
    async with asyncio.TaskGroup() as group:  # each of them waits a second for the suspicion
        for policy in RESCUED_BY:
            folder = tmp_path / policy
            folder.mkdir()
            group.create_task(survive_a_stuck_worker(folder, policy))


async def survive_a_stuck_worker(tmp_path, policy):
    text = f"policy: {policy}, {EAGER}"
    async with cluster(tmp_path, text, workers=5, service_s=0.004) as served:
        async with Load(served.address, clients=2) as load:
            await load.more(30)
            load.answers.clear()
            # What it is stuck with may be redundant work, that nobody needs to be rescued from.
            while not load.answers or not (load.errors or load.sources & RESCUED_BY[policy]):
                served.workers[0].pause()
                await until(lambda: states_are(served, "suspected", "up", "up", "up", "up"))
                await load.more(10)
                served.workers[0].resume()
                await until(lambda: states_are(served, *["up"] * 5))
                before = served.computed[0]
                await eventually(lambda: served.computed[0] > before)  # noqa: B023
        assert load.right
        assert {type(e) for e in load.errors} == ({Unavailable} if policy == "none" else set())


@pytest.mark.parametrize("policy", ["retry", "auto"])
async def test_a_worker_that_dies_at_steady_load_costs_no_query(tmp_path, policy):
    async with cluster(tmp_path, f"policy: {policy}", workers=4, service_s=0.004) as served:
        dead = served.workers[1]
        async with Load(served.address) as load:
            await load.more(30)
            await dead.stop()
            await until(lambda: states_are(served, "up", "suspected", "up", "up"))
            await load.more(30)
            before = served.computed[1]
            await dead.start()
            await until(lambda: states_are(served, *["up"] * 4))
            await eventually(lambda: served.computed[1] > before)
            await load.more(30)
        assert load.errors == []
        assert load.right


async def test_auto_takes_to_parity_once_answers_are_often_late(tmp_path):
    async with cluster(tmp_path, f"policy: auto, {EAGER}", workers=6, service_s=0.005) as served:
        assert (await served.status()).policy_in_force == "hedge+retry"
        async with Load(served.address, clients=2) as load:
            # One is slow, each in its turn, as the picker learns to avoid it.
            turns = itertools.cycle(served.workers)
            while "reconstructed" not in load.sources:
                slow = next(turns)
                slow.service_s = 0.1
                await load.more(15)
                slow.service_s = 0.005
        status = await served.status()
        assert load.errors == []
        assert load.right
        assert status.policy == "auto"
        assert status.policy_in_force == "parity+hedge+retry"
        assert "of the answers are late" in status.why


async def test_a_dedicated_pool_keeps_queries_and_parity_apart(tmp_path):
    roles = {0: "deployed", 1: "deployed", 2: "deployed", 3: "parity"}
    text = f"policy: parity, pool: dedicated, patience: first, {EAGER}"
    async with cluster(tmp_path, text, roles=roles, service_s=0.002, canary_s=60.0) as served:
        async with Load(served.address, clients=2) as load:
            await load.more(30)
            served.workers[0].pause()
            await eventually(lambda: "reconstructed" in load.sources)
            served.workers[0].resume()
        assert load.errors == []
        assert load.right
        assert [w.calls["parity.0"] for w in served.workers[:3]] == [0, 0, 0]
        assert served.workers[3].calls["deployed"] == 0
        assert served.workers[3].calls["parity.0"] > 1
        assert [list(w.roles) for w in (await served.status()).workers] == (
            [["deployed"]] * 3 + [["parity"]]
        )


async def test_patience_first_takes_what_comes_first(tmp_path):
    text = f"policy: parity, patience: first, {EAGER}"
    async with cluster(tmp_path, text, workers=3, latency_ms=NEVER_LATE_MS) as served:
        first, stuck = await one_of_two_missing(served)
        assert source(await first) == "reconstructed"
        stuck.resume()


async def test_patience_tail_waits_for_the_exact_answer_until_it_is_late(tmp_path):
    text = f"policy: parity, patience: tail, {EAGER}"
    async with cluster(tmp_path, text, workers=3, latency_ms=NEVER_LATE_MS) as served:
        first, stuck = await one_of_two_missing(served)
        await until(lambda: is_decodable(served))
        stuck.resume()
        assert source(await first) == "worker"


async def test_patience_tail_reconstructs_what_is_late(tmp_path):
    text = f"policy: parity, patience: tail, {EAGER}"
    async with cluster(tmp_path, text, workers=3, latency_ms=200.0) as served:
        first, stuck = await one_of_two_missing(served)
        assert source(await first) == "reconstructed"
        stuck.resume()
