"""Drills, and two frontends over the same workers, by the real protocol."""

from __future__ import annotations

import asyncio

import pytest

from fakes.cluster import (
    Coder,
    Load,
    cluster,
    frontend,
    request,
    worker_list,
    write_spec,
)
from fakes.triton_fake import FakeTriton, images, linear
from proa import wire
from proa.dispatch.events import DEPLOYED, PARITY
from proa.errors import InvalidRequest
from proa.frontend.addresses import WorkerAddress
from proa.frontend.workers import WorkerCalls, worker_request
from proa.parity import ParityRunner
from proa.rpc import Channels
from proa.spec import load as load_spec

CALM = "groupMsMax: 1, idleReserve: 0, qualitySample: 0"


def source(response) -> str:
    return response.parameters["proa.source"].string_param


def is_right(response, image) -> bool:
    logits = wire.read_response(response)["logits"]
    return bool(abs(logits - linear(image)).max() < 1e-3)


@pytest.mark.parametrize("policy", ["none", "auto"])
async def test_a_drill_is_answered_from_the_code_while_all_is_well(tmp_path, policy):
    async with cluster(tmp_path, f"policy: {policy}, {CALM}", workers=3) as served:
        first, second = images(2, seed=3)
        assert source(await served.infer(request(first))) == "worker"
        response = await served.infer(request(second, proa_reconstruct=True))
        assert source(response) == "reconstructed"
        assert is_right(response, second)
        assert await served.metric("proa_answers_total", source="reconstructed") == 1
        assert source(await served.infer(request(first))) == "worker"


async def test_a_drill_through_encoder_and_decoder(tmp_path):
    async with Coder("encoder") as encoder, Coder("decoder") as decoder:
        coders = {"encoders": encoder.address, "decoders": decoder.address}
        text = f"policy: none, placement: pod, {CALM}"
        async with cluster(tmp_path, text, workers=3, **coders) as served:
            first, second = images(2, seed=4)
            await served.infer(request(first))
            response = await served.infer(request(second, proa_reconstruct=True))
            assert source(response) == "reconstructed"
            assert is_right(response, second)
            assert await decoder.calls() == 1


async def test_a_drill_without_fillers_or_with_failing_parity_is_exact(tmp_path):
    async with cluster(tmp_path, f"policy: none, {CALM}", workers=3) as served:
        assert source(await served.infer(request(proa_reconstruct=True))) == "worker"
        for worker in served.workers:
            worker.programs = ("deployed",)  # the parity program is gone
        response = await served.infer(request(proa_reconstruct=True))
        assert source(response) == "worker"
        assert response.parameters["proa.worker"].string_param in {"w0", "w1", "w2"}


async def test_a_drill_that_can_never_be_had(tmp_path):
    async with cluster(tmp_path, f"policy: none, {CALM}", workers=1) as served:
        with pytest.raises(InvalidRequest, match="exclude each other"):
            await served.infer(request(proa_reconstruct=True, proa_exact=True))


@pytest.mark.parametrize("reporting", [True, False])
async def test_one_frontend_sees_what_another_asks_of_the_workers(tmp_path, reporting):
    workers = [FakeTriton(service_s=0.01) for _ in range(2)]
    for worker in workers:
        worker.reports_load = reporting
    async with cluster(tmp_path, "policy: none", fakes=workers) as first:
        settings = {
            "specs": str(write_spec(tmp_path, "policy: none")),
            "workers": worker_list("digits", workers),
        }
        async with frontend(**settings) as second:
            await second.ready("digits")
            async with Load(first.address, clients=4) as load:
                await load.more(20)
                responses = [await second.infer(request()) for _ in range(20)]
                if reporting:
                    await used(second, 0.3)
                    responses += [await second.infer(request()) for _ in range(5)]
                assert load.errors == []
        names = {output.name for response in responses for output in response.outputs}
        assert names == {"logits"}
        asked = {output.name for w in workers for output in w.seen[-1].outputs}
        assert asked == ({"logits", "proa.load"} if reporting else {"logits"})


async def used(served, share: float) -> None:
    """Ask until the frontend sees that so much of the workers' time is used."""
    async with asyncio.timeout(10.0):
        while await served.metric("proa_utilisation_ratio") < share:
            await served.infer(request())


async def test_own_work_is_not_taken_for_that_of_others(tmp_path):
    spec = load_spec(write_spec(tmp_path))
    worker = FakeTriton(service_s=0.005)
    channels = Channels(message_bytes_max=1 << 20)
    async with worker:
        address = WorkerAddress("w0", worker.address, "d0", frozenset((DEPLOYED, PARITY)))
        ours, others = (WorkerCalls(spec, channels, ParityRunner(channels)) for _ in range(2))

        async def ask(calls):
            for image in images(10):
                query = worker_request(spec, {"image": image})
                await calls.infer(address, query, 1, timeout_s=5.0)
                await calls.canary(address, frozenset((PARITY,)), timeout_s=5.0)

        for calls in (ours, others):
            await calls.hosted(address, timeout_s=5.0)
        await ask(ours)
        await ask(ours)
        assert ours.meter("w0").share == 0.0
        await asyncio.gather(ask(ours), ask(others))
        assert 0.0 < ours.meter("w0").share < 0.7
        ours.forget("w0")
        assert ours.meter("w0").share == 0.0
    await channels.close()
