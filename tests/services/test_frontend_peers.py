"""Several frontends over the same workers: together they take no more than one would."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fakes.cluster import Load, frontend, request, until, write_spec
from fakes.eventually import eventually
from fakes.source_fake import FakeSource, peer, workers
from fakes.triton_fake import FakeTriton, images


class Held(FakeTriton):
    """Its parity programs answer only while `open`; `held`: how many wait, at all such workers."""

    open = asyncio.Event()
    held = 0

    async def _infer(self, request, program):
        if program != "deployed":
            Held.held += 1
            try:
                await Held.open.wait()
            finally:
                Held.held -= 1
        return await super()._infer(request, program)


@contextlib.asynccontextmanager
async def frontends(folder, fakes, count, redundancy, **more):
    """So many frontends that know of each other and of the workers."""
    names = [f"f{i}" for i in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        source = FakeSource(*workers(fakes), *(peer(name) for name in names))
        path = write_spec(folder, redundancy, **more)
        served = [
            await stack.enter_async_context(frontend(source=source, pod=name, specs=str(path)))
            for name in names
        ]
        for index, found in enumerate(served):
            await until(lambda found=found: all_up(found, len(fakes)))
            assert await found.metric("proa_frontends") == count
            assert await found.metric("proa_frontend_index") == index
        yield served, source


async def all_up(found, count):
    return await found.states() == ["up"] * count


async def ask(found, seed):
    """Two queries, one group."""
    await asyncio.gather(*(found.infer(request(image)) for image in images(2, seed=seed)))


@pytest.mark.parametrize("count", [1, 2])
async def test_redundant_work_of_two_frontends_fits_the_room_of_one(tmp_path, count):
    """Eight workers of which four are kept free leave room for four redundant computations."""
    fakes = [Held() for _ in range(8)]
    Held.open = asyncio.Event()
    Held.open.set()
    text = "policy: parity, groupMsMax: 5000, idleReserve: 4, qualitySample: 1"
    # Before 20 answers the spec's latency says what is late: here, nothing.
    async with frontends(tmp_path, fakes, count, text, latency_ms=5000) as (served, _):
        Held.open.clear()
        for seed in range(6):
            for found in served:
                await ask(found, seed)
        await eventually(lambda: Held.held >= 4)
        assert Held.held == 4
        Held.open.set()
        await eventually(lambda: Held.held == 0)


async def test_a_frontend_alone_takes_all_the_room_and_gives_it_back(tmp_path):
    """As one joins and leaves, under load: no request fails, every answer is right."""
    fakes = [FakeTriton(service_s=0.002) for _ in range(4)]
    text = "policy: auto, groupMsMax: 1, idleReserve: 1"
    async with frontends(tmp_path, fakes, 2, text) as (served, source):
        async with Load(served[0].address) as first, Load(served[1].address) as second:
            await first.more(50)
            await second.more(50)
            source.set(*workers(fakes), peer("f0"))
            await until(lambda: alone(served[0]))
            await first.more(50)
            await second.more(50)
            source.set(*workers(fakes), peer("f0"), peer("f1"))
            await first.more(50)
        for load in (first, second):
            assert load.errors == []
            assert load.right


async def alone(found):
    return await found.metric("proa_frontends") == 1
