"""Encoder and decoder as services: used, and done without while they are dead or hang."""

from __future__ import annotations

import contextlib

from fakes.cluster import Coder, Load, cluster, until
from fakes.eventually import eventually

TEXT = (
    "policy: parity, patience: first, placement: pod, groupMsMax: 1, idleReserve: 0,"
    " qualitySample: 0"
)


@contextlib.asynccontextmanager
async def coded(folder, *coders, **settings):
    """A cluster of five workers that encodes and decodes by services, and steady load on it."""
    addresses = {f"{kind}s": coder.address for kind, coder in coders}
    async with (
        cluster(folder, TEXT, workers=5, service_s=0.004, **addresses, **settings) as served,
        Load(served.address, clients=2) as load,
    ):
        await load.more(20)
        yield served, load
        assert load.errors == []
        assert load.right


async def lost(served):
    return await served.metric("proa_redundancy_lost_total")


async def lost_more(served, than):
    return await lost(served) > than


async def reconstruct(served, load):
    """Have a worker stuck until a query of it is reconstructed."""
    load.answers.clear()
    while "reconstructed" not in load.sources:
        await stick(served, load)


async def stick(served, load):
    """Have two workers stuck, one after the other, while others answer."""
    for worker in served.workers[:2]:
        worker.pause()
        await load.more(10)
        worker.resume()


async def fell_back(served):
    return await served.metric("proa_frontend_inline_fallbacks_total", service="decoder") > 0


async def test_groups_are_encoded_and_decoded_by_the_services(tmp_path):
    async with (
        Coder("encoder") as encoder,
        Coder("decoder") as decoder,
        coded(tmp_path, ("encoder", encoder), ("decoder", decoder)) as (served, load),
    ):
        await reconstruct(served, load)
        assert await encoder.calls() > 0
        assert await decoder.calls() > 0
        assert not await fell_back(served)


async def test_a_dead_encoder_costs_redundancy_and_no_query(tmp_path):
    async with (
        Coder("encoder") as encoder,
        coded(tmp_path, ("encoder", encoder)) as (served, load),
    ):
        before = await lost(served)
        await encoder.stop()
        await until(lambda: lost_more(served, before))
        await load.more(20)
        await encoder.start()
        await until(encoder.calls)
        await reconstruct(served, load)


async def test_an_encoder_that_hangs_costs_redundancy_and_no_query(tmp_path):
    async with (
        Coder("encoder") as encoder,
        coded(tmp_path, ("encoder", encoder)) as (served, load),
    ):
        before = await lost(served)
        await encoder.hang()
        # A row counts as lost while its group still misses a prediction: one worker is stuck.
        while not await lost_more(served, before):
            await stick(served, load)
        await load.more(20)
        await encoder.recover()
        await reconstruct(served, load)


async def test_without_its_decoder_the_frontend_decodes_inline_and_counts_it(tmp_path):
    async with (
        Coder("decoder") as decoder,
        coded(tmp_path, ("decoder", decoder)) as (served, load),
    ):
        await decoder.stop()
        await reconstruct(served, load)
        assert await fell_back(served)
        await decoder.start()
        while not await decoder.calls():
            await reconstruct(served, load)


async def test_a_decoder_that_hangs_is_stood_in_for(tmp_path):
    async with (
        Coder("decoder") as decoder,
        coded(tmp_path, ("decoder", decoder)) as (served, load),
    ):
        await decoder.hang()
        await reconstruct(served, load)
        assert await fell_back(served)
        before = await decoder.calls()
        await decoder.recover()
        while await decoder.calls() <= before:
            await reconstruct(served, load)


async def test_one_of_two_encoders_is_enough(tmp_path):
    async with Coder("encoder") as one, Coder("encoder") as other:
        addresses = f"{one.address},{other.address}"
        async with (
            cluster(tmp_path, TEXT, workers=5, service_s=0.004, encoders=addresses) as served,
            Load(served.address, clients=2) as load,
        ):
            await until(one.calls)
            await until(other.calls)
            await one.stop()
            before = await other.calls()
            await eventually(lambda: len(load.answers) > 50)
            await reconstruct(served, load)
            assert await other.calls() > before
            assert load.errors == []
