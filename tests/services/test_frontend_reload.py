"""Models come, change and go while a frontend serves; nothing is lost by it."""

from __future__ import annotations

import contextlib

import pytest
from tritonclient.grpc import service_pb2

from fakes.cluster import Load, frontend, request, until, write_spec
from fakes.config_map import ConfigMap
from fakes.eventually import eventually
from fakes.source_fake import FakeSource, worker, workers
from fakes.triton_fake import FakeTriton
from proa.errors import UnknownModel

PARITY = "policy: parity, groupMsMax: 1, idleReserve: 0"


@contextlib.asynccontextmanager
async def watched(folder, fakes, models, source=None, **settings):
    """A frontend of the models (name -> redundancy) of a ConfigMap, which comes with it."""
    mount = Mount(folder)
    mount.put(**models)
    async with contextlib.AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        source = source or FakeSource(*workers(fakes))
        values = {"specs": str(mount.folder), "canary_s": 0.1, **settings}
        yield await stack.enter_async_context(frontend(source=source, **values)), mount


class Mount(ConfigMap):
    """Its files are given by the `redundancy` of each model; None: a file that is no spec."""

    def __init__(self, folder):
        super().__init__(folder / "models")
        self._texts = folder

    def put(self, **models):
        self.write(
            **{
                name: "nonsense"
                if redundancy is None
                else write_spec(self._texts, redundancy, name).read_text(encoding="utf-8")
                for name, redundancy in models.items()
            }
        )


async def policy(found, wanted):
    """Wait until the model's policy is `wanted`."""

    async def as_wanted():
        return (await found.status()).policy == wanted

    await until(as_wanted)


async def models(found, **wanted):
    """Wait until so many models are in these states."""

    async def as_wanted():
        counts = [await found.metric("proa_frontend_models", state=state) for state in wanted]
        return counts == list(wanted.values())

    await until(as_wanted)


async def names(found):
    index = await found.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
    return {model.name: model.state for model in index.models}


async def test_a_policy_change_loses_no_request(tmp_path):
    fakes = [FakeTriton(service_s=0.002) for _ in range(4)]
    async with watched(tmp_path, fakes, {"digits": "policy: none"}) as (found, mount):
        await found.ready()
        async with Load(found.address, clients=6) as load:
            await load.more(50)
            for redundancy in (PARITY, "policy: retry", PARITY):
                mount.put(digits=redundancy)
                await policy(found, redundancy.partition(",")[0].removeprefix("policy: "))
                await models(found, serving=1, starting=0, leaving=0)
                received = len(load.answers)  # taken first: the load goes on while we ask
                assert await found.metric("proa_answers_total") >= received  # the counts went on
                await load.more(50)
        assert load.errors == []
        assert load.right
        assert sum(fake.calls["parity.0"] for fake in fakes) > 8


async def test_a_changed_spec_waits_for_a_worker_that_fits(tmp_path):
    """The workers roll after the ConfigMap: until one of the new model is there, the old serves."""
    old, new = FakeTriton(), FakeTriton()
    new.programs = ("deployed",)
    source = FakeSource()
    async with watched(tmp_path, [old, new], {"digits": "policy: none"}, source) as (found, mount):
        source.set(worker("w0", old))
        await found.ready()
        text = (tmp_path / "digits.yaml").read_text(encoding="utf-8")
        async with Load(found.address) as load:
            mount.write(digits=text.replace("maxBatch: 8", "maxBatch: 16"))
            await models(found, serving=1, starting=1, leaving=0)
            await load.more(20)
            new.max_batch = 16
            source.set(worker("w0", old), worker("w1", new))
            await models(found, serving=1, starting=0, leaving=0)
            await load.more(20)
        assert load.errors == []
        states = {w.name: w.state for w in (await found.status()).workers}
        assert states["w1"] == "up"
        assert "its batch is at most 8, not 16" in states["w0"]


async def test_a_version_without_workers_does_not_take_over_from_one_that_lost_its_own(tmp_path):
    old = FakeTriton()
    async with watched(tmp_path, [old], {"digits": "policy: none"}) as (found, mount):
        await found.ready()
        text = (tmp_path / "digits.yaml").read_text(encoding="utf-8")
        mount.write(digits=text.replace("maxBatch: 8", "maxBatch: 16"))
        await models(found, serving=1, starting=1)
        await old.stop()

        async def is_ready(wanted):
            return ((await found.page("/readyz"))[0] == 200) is wanted

        await until(lambda: is_ready(False))
        await models(found, serving=1, starting=1)
        await old.start()
        await until(lambda: is_ready(True))
        assert (await found.infer(request())).outputs


async def test_a_spec_that_was_never_served_is_replaced_at_once(tmp_path):
    async with watched(tmp_path, [FakeTriton()], {"digits": "policy: none"}) as (found, mount):
        await found.ready()
        text = (tmp_path / "digits.yaml").read_text(encoding="utf-8")
        wrong = text.replace("name: digits", "name: wrong").replace("[1, 8, 8]", "[3]")
        mount.write(digits=text, wrong=wrong)
        await models(found, serving=2)
        mount.write(digits=text, wrong=wrong.replace("[3]", "[4]"))

        async def shape():
            asked = service_pb2.ModelMetadataRequest(name="wrong")
            return list((await found.stub.ModelMetadata(asked)).inputs[0].shape) == [-1, 4]

        await until(shape)
        await models(found, serving=2, starting=0, leaving=0)


async def test_a_change_taken_back_is_forgotten(tmp_path):
    fakes = [FakeTriton()]
    async with watched(tmp_path, fakes, {"digits": "policy: none"}) as (found, mount):
        await found.ready()
        text = (tmp_path / "digits.yaml").read_text(encoding="utf-8")
        mount.write(digits=text.replace("maxBatch: 8", "maxBatch: 16"))
        await models(found, starting=1)
        mount.write(digits=text)
        await models(found, serving=1, starting=0, leaving=0)
        await found.infer(request())


async def test_a_broken_file_keeps_the_model_and_is_counted(tmp_path):
    async with watched(tmp_path, [FakeTriton()], {"digits": "policy: none"}) as (found, mount):
        await found.ready()
        mount.put(digits=None)
        await models(found, serving=1, broken=1)
        assert await found.metric("proa_frontend_spec_errors_total") == 1
        await found.infer(request())
        assert (await found.page("/readyz"))[0] == 200
        mount.put(digits="policy: retry")
        await policy(found, "retry")
        await models(found, serving=1, broken=0)


async def test_a_removed_model_finishes_what_it_has(tmp_path):
    fakes = [FakeTriton(), FakeTriton(model="letters")]
    given = {"digits": "policy: none", "letters": "policy: none"}
    source = FakeSource()
    async with watched(tmp_path, fakes, given, source) as (found, mount):
        source.set(worker("w0", fakes[0]), worker("l0", fakes[1], model="letters"))
        await found.ready()
        fakes[0].pause()
        call = found.stub.ModelInfer(request(timeout=20_000_000))
        await eventually(lambda: fakes[0].busy)
        mount.put(letters="policy: none")
        await models(found, serving=1, leaving=1)
        with pytest.raises(UnknownModel, match="model 'digits' is unknown; served: letters"):
            await found.infer(request())
        assert await names(found) == {"letters": "READY"}
        fakes[0].resume()
        assert (await call).outputs
        await models(found, serving=1, leaving=0)


@pytest.mark.parametrize("ready_when", ["all", "any"])
async def test_a_model_that_comes_without_workers_takes_no_other_down(tmp_path, ready_when):
    letters = FakeTriton(model="letters")
    fakes = [FakeTriton(), letters]
    source, given = FakeSource(), {"digits": "policy: none"}
    async with watched(tmp_path, fakes, given, source, ready_when=ready_when) as (found, mount):
        source.set(worker("w0", fakes[0]))
        await found.ready()
        mount.put(digits="policy: none", letters="policy: none")
        await models(found, serving=2)
        assert (await found.page("/readyz"))[0] == 200
        assert await names(found) == {"digits": "READY", "letters": "UNAVAILABLE"}
        source.set(worker("w0", fakes[0]), worker("l0", letters, model="letters"))
        await found.ready("letters")
        source.set(worker("w0", fakes[0]))

        async def is_ready(wanted):
            return ((await found.page("/readyz"))[0] == 200) is wanted

        await until(lambda: is_ready(ready_when == "any"))
        assert (await found.infer(request())).outputs


@pytest.mark.parametrize(("ready_when", "ready"), [("all", False), ("any", True)])
async def test_at_the_start_all_models_count_or_any(tmp_path, ready_when, ready):
    fakes, source = [FakeTriton()], FakeSource()
    given = {"digits": "policy: none", "letters": "policy: none"}
    async with watched(tmp_path, fakes, given, source, ready_when=ready_when) as (found, _):
        source.set(worker("w0", fakes[0]))
        await found.ready("digits")
        server = await found.stub.ServerReady(service_pb2.ServerReadyRequest())
        assert server.ready is ready


async def test_a_frontend_starts_with_no_model_and_gets_one(tmp_path):
    fakes = [FakeTriton()]
    async with watched(tmp_path, fakes, {"digits": None}) as (found, mount):
        await models(found, serving=0, broken=1)
        assert (await found.page("/readyz"))[0] == 503
        mount.put(digits="policy: none")
        await found.ready()
        await found.infer(request())
