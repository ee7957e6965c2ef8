"""What an answer says of itself, and what a client may ask of it."""

from __future__ import annotations

import numpy as np
import pytest

from fakes.cluster import (
    Load,
    cluster,
    frontend,
    is_decodable,
    one_of_two_missing,
    request,
    until,
    worker_list,
    write_spec,
)
from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images, linear
from proa import wire
from proa.client import AsyncClient
from proa.errors import BadAnswer, Unavailable

EAGER = "groupMsMax: 1, idleReserve: 0, qualitySample: 0"
PARITY = f"policy: parity, patience: first, {EAGER}"
NEVER_LATE_MS = 60_000.0


def logits(response):
    return wire.read_response(response)["logits"]


async def test_an_answer_names_source_worker_and_group(tmp_path):
    async with cluster(tmp_path, PARITY, workers=3) as served:
        response = await served.infer(request())
        parameters = wire.get_parameters(response.parameters)
        assert parameters["proa.source"] == "worker"
        assert parameters["proa.worker"] in {"w0", "w1", "w2"}
        assert isinstance(parameters["proa.group"], int)
        assert (response.model_name, response.model_version) == ("digits", "1")


async def test_only_the_wanted_outputs_come_back(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        wanted = request()
        wanted.outputs.add(name="logits")
        response = await served.infer(wanted)
        assert [output.name for output in response.outputs] == ["logits"]
        assert "proa.group" not in response.parameters


async def test_exact_never_gets_a_reconstruction(tmp_path):
    async with cluster(tmp_path, PARITY, workers=3, latency_ms=NEVER_LATE_MS) as served:
        first, stuck = await one_of_two_missing(served, proa_exact=True)
        await until(lambda: is_decodable(served))
        stuck.resume()
        assert (await first).parameters["proa.source"].string_param == "worker"


async def test_a_request_may_choose_its_policy(tmp_path):
    async with cluster(tmp_path, f"policy: none, {EAGER}", workers=2) as served:
        for worker in served.workers:
            worker.fail_next(1, "INTERNAL")
        with pytest.raises(BadAnswer):
            await served.infer(request())
        response = await served.infer(request(proa_policy="retry"))
        assert response.parameters["proa.source"].string_param == "retry"
        await served.infer(request(proa_policy="replicate"))
        assert await served.metric("proa_redundant_work_total", kind="replica") == 1


async def test_the_timeout_of_a_request_is_its_deadline(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        served.workers[0].pause()
        async with AsyncClient(served.address, deadline_s=30.0) as client:
            stuck = served.stub.ModelInfer(request(timeout=20_000_000))
            await eventually(lambda: served.workers[0].calls["deployed"] == 2)
            with pytest.raises(Exception, match="the deadline has passed"):
                await served.infer(request(timeout=20_000))
            served.workers[0].resume()
            assert (await stuck).outputs
            assert (await client.infer("digits", images(1)[0])).source == "worker"


async def test_observe_measures_but_never_answers_with_a_reconstruction(tmp_path):
    text = f"mode: observe, {PARITY}"
    async with cluster(tmp_path, text, workers=3, latency_ms=NEVER_LATE_MS) as served:
        first, stuck = await one_of_two_missing(served)
        await until(lambda: is_decodable(served))
        stuck.resume()
        assert (await first).parameters["proa.source"].string_param == "worker"
        assert await served.metric("proa_answers_total", source="reconstructed") == 0
        assert await served.metric("proa_frontend_would_be_seconds_count") == 2
        would_be_s = await served.metric("proa_frontend_would_be_seconds_sum")
        assert would_be_s < await served.metric("proa_frontend_request_seconds_sum")


async def states_are(served, *wanted):
    return await served.states() == list(wanted)


async def test_two_models_in_one_frontend_do_not_touch_each_other(tmp_path):
    digits, letters = FakeTriton(), FakeTriton(model="letters")
    letters.change = lambda answer: -answer
    (image,) = images(1)
    specs = [write_spec(tmp_path, name=name) for name in ("digits", "letters")]
    async with digits, letters:
        workers = f"{worker_list('digits', [digits])};{worker_list('letters', [letters])}"
        async with (
            frontend(specs=",".join(map(str, specs)), workers=workers, canary_s=0.05) as served,
            AsyncClient(served.address, deadline_s=5.0) as client,
        ):
            await served.ready("digits", "letters")
            answer = await client.infer("digits", image)
            np.testing.assert_allclose(answer.only, linear(image), rtol=1e-4)
            answer = await client.infer("letters", image)
            np.testing.assert_allclose(answer.only, -linear(image), rtol=1e-4)
            await letters.stop()
            await until(lambda: has_models(client, digits="READY", letters="UNAVAILABLE"))
            assert not await client.is_ready()
            assert await client.is_ready("digits")
            with pytest.raises(Unavailable, match="letters: no worker is ready"):
                await served.infer(named("letters", timeout=50_000))
            assert (await client.infer("digits", image)).source == "worker"


def named(model, **parameters):
    found = request(**parameters)
    found.model_name = model
    return found


async def has_models(client, **states):
    return {one.name: one.state for one in await client.models()} == states


async def test_two_of_three_missing_are_reconstructed_exactly_from_two_rows(tmp_path):
    text = f'k: 3, r: 2, parity: {{"3": [p0.pt2, p1.pt2]}}, {PARITY}'
    programs = ("deployed", "parity.0", "parity.1")
    fakes = [FakeTriton(programs=programs, code="sum:3:2") for _ in range(5)]
    queries = images(3, batch=2, seed=3)
    async with cluster(tmp_path, text, fakes=fakes, latency_ms=NEVER_LATE_MS) as served:
        for worker in fakes:
            worker.pause()
        calls = [served.stub.ModelInfer(request(q, timeout=30_000_000)) for q in queries]
        # All five have joined: each has had one canary of each row.
        await eventually(lambda: sum(w.calls["deployed"] for w in fakes) == 5 + 3)
        await eventually(
            lambda: all(sum(w.calls[f"parity.{j}"] for w in fakes) == 6 for j in (0, 1))
        )
        stuck = [w for w in fakes if w.calls["deployed"] == 2][:2]
        for worker in fakes:
            if worker not in stuck:
                worker.resume()
        responses = [await call for call in calls]
        for query, response in zip(queries, responses, strict=True):
            np.testing.assert_allclose(logits(response), linear(query), rtol=1e-3, atol=1e-3)
        sources = sorted(r.parameters["proa.source"].string_param for r in responses)
        assert sources == ["reconstructed", "reconstructed", "worker"]
        assert len({r.parameters["proa.group"].int64_param for r in responses}) == 1
        for worker in stuck:
            worker.resume()


async def test_packages_are_never_mixed_while_workers_are_replaced(tmp_path):
    old = [FakeTriton(package="01d") for _ in range(3)]
    new = [FakeTriton(package="4e3") for _ in range(3)]
    for worker in new:
        worker.change = negative
    async with cluster(tmp_path, PARITY, fakes=[*old, *new], service_s=0.004) as served:
        async with Load(served.address) as load:
            await stick(served, load)
            replaced = old[2]
            await replaced.stop()
            await until(lambda: states_are(served, "up", "up", "suspected", "up", "up", "up"))
            replaced.package, replaced.change = "4e3", negative
            await replaced.start()
            await until(lambda: serves(served, "4e3"))
            while sum(answer.reconstructed for _, answer in load.answers) < 10:
                await stick(served, load)
        assert load.errors == []
    # The new package answers the opposite: a mixture would be neither.
    for image, answer in load.answers:
        want = linear(image)
        assert any(np.allclose(answer.only, s * want, rtol=1e-3, atol=1e-3) for s in (1, -1))


def negative(answer):
    return -answer


async def stick(served, load):
    """Have one worker after the other stuck for a while."""
    for worker in served.workers:
        worker.pause()
        await load.more(6)
        worker.resume()


async def test_a_worker_that_comes_back_with_another_package_is_noticed(tmp_path):
    async with cluster(tmp_path, PARITY, workers=1, canary_s=0.05) as served:
        (worker,) = served.workers
        await worker.stop()
        worker.package = "4e3"
        await worker.start()
        await until(lambda: serves(served, "4e3"))


async def serves(served, package):
    return (await served.status()).package == package
