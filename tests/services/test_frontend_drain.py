"""Told to stop, a process is unready at once and serves on until all have heard of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fakes.cluster import Load, _get, frontend, request, until, write_spec
from fakes.service_fake import FakeService
from fakes.source_fake import FakeSource, worker, workers
from fakes.triton_fake import FakeTriton
from proa.cluster.endpoints import DRAINING
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.encoder.main import serve_encoder
from proa.encoder.settings import EncoderSettings


@contextlib.asynccontextmanager
async def two_frontends(folder, redundancy="policy: none", **settings):
    """Two frontends behind one Service, over three workers."""
    async with contextlib.AsyncExitStack() as stack:
        fakes = [FakeTriton(service_s=0.002) for _ in range(3)]
        for fake in fakes:
            await stack.enter_async_context(fake)
        source = FakeSource(*workers(fakes))
        path = str(write_spec(folder, redundancy))
        values = {"source": source, "specs": path, "grace_s": 5.0, **settings}
        served = [await stack.enter_async_context(frontend(**values)) for _ in range(2)]
        for found in served:
            await found.ready()
        service = FakeService(*(found.address for found in served))
        yield served, await stack.enter_async_context(service)


async def unready(found):
    return (await found.page("/readyz"))[0] == 503


@pytest.mark.parametrize("policy", ["none", "auto"])
async def test_a_frontend_that_stops_under_load_loses_no_request(tmp_path, policy):
    async with two_frontends(tmp_path, f"policy: {policy}", drain_s=0.5) as (served, service):
        async with contextlib.AsyncExitStack() as stack:
            loads = [
                await stack.enter_async_context(Load(service.address, clients=3, retry=True))
                for _ in range(4)
            ]
            for load in loads:
                await load.more(10)
            before = await served[0].metric("proa_answers_total")
            served[0].task.cancel()
            await until(lambda: unready(served[0]))
            service.endpoints.remove(served[0].address)
            for load in loads:
                await load.more(5)
            assert await served[0].metric("proa_answers_total") > before  # it serves on
            await asyncio.wait([served[0].task])
            for load in loads:
                await load.more(20)
        errors = [error for load in loads for error in load.errors]
        assert errors == []
        assert all(load.right for load in loads)


async def test_a_second_signal_ends_the_wait_and_loses_nothing_either(tmp_path):
    fake = FakeTriton()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(fake)
        found = await stack.enter_async_context(
            frontend(
                source=FakeSource(worker("w0", fake)),
                specs=str(write_spec(tmp_path, "policy: none")),
                drain_s=600.0,
                grace_s=20.0,
            )
        )
        await found.ready()
        found.task.cancel()
        await until(lambda: unready(found))
        assert (await found.infer(request())).outputs
        fake.pause()
        call = found.stub.ModelInfer(request(timeout=20_000_000))

        async def busy():
            return fake.busy

        await until(busy)
        found.task.cancel()
        fake.resume()
        assert (await call).outputs
        await asyncio.wait([found.task])


@pytest.mark.parametrize(
    ("serve", "settings"),
    [(serve_encoder, EncoderSettings), (serve_decoder, DecoderSettings)],
)
async def test_coders_drain_as_well(serve, settings):
    listening = asyncio.get_running_loop().create_future()
    made = settings(host="127.0.0.1", port=0, admin_port=0, drain_s=600.0, grace_s=0.0)
    task = asyncio.create_task(serve(made, listening=listening))
    port, admin_port = await listening

    async def page(wanted):
        found = await asyncio.to_thread(_get, f"http://127.0.0.1:{admin_port}/readyz")
        return found[0] == wanted

    await until(lambda: page(200))
    task.cancel()
    await until(lambda: page(503))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_a_worker_that_drains_loses_nothing_without_any_redundancy(tmp_path):
    fakes = [FakeTriton(service_s=0.002) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        source = FakeSource(*workers(fakes))
        path = str(write_spec(tmp_path, "policy: none"))
        found = await stack.enter_async_context(frontend(source=source, specs=path))
        await until(lambda: is_up(found, 3))
        load = await stack.enter_async_context(Load(found.address, clients=6))
        for i in (0, 1):
            await load.more(30)
            staying = [worker(f"w{j}", fakes[j]) for j in range(i + 1, 3)]
            source.set(worker(f"w{i}", fakes[i], state=DRAINING), *staying)
            await until(lambda staying=staying: is_up(found, len(staying)))
            await fakes[i].stop()
            source.set(*staying)
        await load.more(30)
        assert load.errors == []
        assert load.right


async def is_up(found, count):
    return await found.states() == ["up"] * count
