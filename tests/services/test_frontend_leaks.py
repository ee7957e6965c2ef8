"""After every kind of end that a query can have, engine and shell hold nothing of it any more."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest
from prometheus_client import CollectorRegistry

from fakes.cluster import request, worker_list, write_spec
from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images
from proa.errors import ProaError, Unavailable
from proa.frontend.main import build_world
from proa.frontend.metrics import FrontendMetrics
from proa.frontend.queries import check_request
from proa.frontend.settings import FrontendSettings
from proa.rpc import Channels

EAGER = "patience: first, groupMsMax: 1, idleReserve: 0, qualitySample: 1, hedge: {delayMs: 1}"
QUERIES = 300


@contextlib.asynccontextmanager
async def model(folder, redundancy, workers, **settings):
    """One served model without its gRPC port: its engine and shell, and real calls to workers."""
    values = {
        "specs": str(write_spec(folder, redundancy)),
        "workers": worker_list("digits", workers),
        **settings,
    }
    channels = Channels(message_bytes_max=1 << 20)
    world = build_world(FrontendSettings(**values), channels, FrontendMetrics(CollectorRegistry()))
    found = world.models.get("digits")
    try:
        await eventually(lambda: len(list(found.shell.engine.state.workers)) == len(workers))
        yield found
    finally:
        await world.models.close()
        await channels.close()


def is_empty(found):
    """Whether only the reservoir holds queries, and nothing runs."""
    shell, engine = found.shell, found.shell.engine
    kept = len(engine.coding._reservoir)
    return (
        not engine.state.attempts
        and not engine.coding.groups
        and not engine.queue_depth
        and len(engine.state.queries) == kept
        and shell._open.keys() == engine.state.queries.keys()
        and not shell._attempts
        and not shell._parity
        and not shell._tasks
    )


def infer(found, image, timeout_s=1.0):
    """A query under way, as the servicer would start it."""
    query = check_request(request(image), found.spec)
    deadline = time.monotonic() + timeout_s
    return asyncio.create_task(found.shell.infer(query, deadline))


@pytest.mark.parametrize("policy", ["none", "retry", "replicate", "hedge", "parity", "auto"])
async def test_nothing_is_left_of_answered_failed_late_and_cancelled_queries(tmp_path, policy):
    dice = random.Random(1)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FakeTriton(service_s=0.001)) for _ in range(4)]
        found = await stack.enter_async_context(
            model(tmp_path, f"policy: {policy}, {EAGER}", workers, queue_max=16)
        )
        ended = []
        for i, image in enumerate(images(QUERIES)):
            task = infer(found, image, timeout_s=dice.choice([0.001, 0.02, 0.1]))
            ended.append(task)
            if i % 7 == 3:
                ended[i - dice.randint(0, 3)].cancel()
            if i % 20 == 0:
                dice.choice(workers).fail_next(1, dice.choice(["INTERNAL", "RESOURCE_EXHAUSTED"]))
            if i % 50 == 10:
                workers[0].pause()
            if i % 50 == 30:
                workers[0].resume()
            if i % 3 == 0:
                await asyncio.wait([task])
        results = await asyncio.gather(*ended, return_exceptions=True)
        workers[0].resume()
        await eventually(lambda: is_empty(found))
        assert {type(r) for r in results if not isinstance(r, (ProaError, asyncio.CancelledError))}
        stats = found.shell.engine.state.stats
        assert stats.arrived == sum(stats.answers.values()) + sum(stats.failed.values())


async def test_a_query_that_waits_for_a_worker_is_withdrawn_by_its_cancellation(tmp_path):
    async with FakeTriton() as worker, model(tmp_path, "policy: auto", [worker]) as found:
        worker.pause()
        calls = [infer(found, image, timeout_s=30.0) for image in images(3)]
        await eventually(lambda: found.shell.engine.queue_depth == 2)
        for call in calls:
            call.cancel()
        await eventually(lambda: found.shell.engine.queue_depth == 0)
        worker.resume()
        await eventually(lambda: is_empty(found))
        # Its canary, the one that had begun, and the one that waited there.
        assert worker.calls["deployed"] == 3


async def test_a_worker_that_is_lost_leaves_nothing_behind(tmp_path):
    text = f"policy: parity, {EAGER}"
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FakeTriton()) for _ in range(3)]
        found = await stack.enter_async_context(model(tmp_path, text, workers))
        for worker in workers:
            worker.pause()
        calls = [infer(found, image) for image in images(6)]
        await eventually(lambda: sum(w.calls["deployed"] for w in workers) >= 5)
        for worker in workers:
            await worker.stop()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, ProaError) for result in results)
        assert any(isinstance(result, Unavailable) for result in results)
        await eventually(lambda: is_empty(found))
