"""Workers, coders and fellow frontends come and go while a frontend serves."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from fakes.cluster import Coder, Load, frontend, request, until, write_spec
from fakes.eventually import eventually
from fakes.kube_fake import endpoint, endpoint_slice, fake_kube, kubeconfig
from fakes.source_fake import FakeSource, peer, worker, workers
from fakes.triton_fake import FakeTriton
from proa.cluster.endpoints import DRAINING


@contextlib.asynccontextmanager
async def served(folder, redundancy, fakes, source=None, **settings):
    """A frontend that follows a source; the fakes are its workers w0, w1 and on."""
    async with contextlib.AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        source = source or FakeSource(*workers(fakes))
        path = write_spec(folder, redundancy)
        found = await stack.enter_async_context(
            frontend(source=source, **{"specs": str(path), "canary_s": 0.1, **settings})
        )
        yield found, source


async def states(found):
    """Worker -> state."""
    return {w.name: w.state.partition(":")[0] for w in (await found.status()).workers}


async def become(found, **wanted):
    async def as_wanted():
        return await states(found) == wanted

    await until(as_wanted)


async def test_workers_join_and_leave_under_load(tmp_path):
    fakes = [FakeTriton(service_s=0.002) for _ in range(3)]
    async with served(tmp_path, "policy: none", fakes) as (found, source):
        await become(found, w0="up", w1="up", w2="up")
        async with Load(found.address, clients=4) as load:
            await load.more(30)
            source.set(*workers(fakes[:1]))
            await become(found, w0="up")
            counts = [fake.calls["deployed"] for fake in fakes]
            await load.more(30)
            assert [fake.calls["deployed"] for fake in fakes[1:]] == counts[1:]
            source.set(*workers(fakes))
            await become(found, w0="up", w1="up", w2="up")
            await load.more(30)
        assert load.errors == []
        assert load.right
        assert all(
            fake.calls["deployed"] > count for fake, count in zip(fakes, counts, strict=True)
        )


async def test_on_one_node_pods_are_the_failure_domains_until_there_are_more_nodes(tmp_path):
    fakes = [FakeTriton(service_s=0.002) for _ in range(3)]

    async def domains():
        return {w.domain for w in (await found.status()).workers}

    async with served(tmp_path, "policy: none", fakes, FakeSource()) as (found, source):
        source.set(*(replace(one, domain="n1") for one in workers(fakes)))
        await become(found, w0="up", w1="up", w2="up")
        assert await domains() == {"w0", "w1", "w2"}
        async with Load(found.address, clients=4) as load:
            await load.more(10)
            source.set(*workers(fakes))
            wanted = {"node-of-w0", "node-of-w1", "node-of-w2"}
            await until(lambda: _equal(domains, wanted))
            assert await states(found) == {"w0": "up", "w1": "up", "w2": "up"}
            await load.more(10)
        assert load.errors == []


async def _equal(ask, wanted):
    return await ask() == wanted


@pytest.mark.parametrize("how", ["draining", "gone"])
async def test_what_runs_at_a_leaving_worker_may_finish(tmp_path, how):
    fakes = [FakeTriton(), FakeTriton()]
    async with served(tmp_path, "policy: none", fakes) as (found, source):
        await become(found, w0="up", w1="up")
        for fake in fakes:
            fake.pause()
        calls = [found.stub.ModelInfer(request(timeout=20_000_000)) for _ in range(2)]
        await eventually(lambda: all(fake.busy for fake in fakes))
        leaving = [worker("w0", fakes[0], state=DRAINING)] if how == "draining" else []
        source.set(*leaving, worker("w1", fakes[1]))
        await become(found, w0="draining", w1="up")
        for fake in fakes:
            fake.resume()
        answers = [await call for call in calls]
        assert {a.parameters["proa.worker"].string_param for a in answers} == {"w0", "w1"}
        await become(found, w1="up")


async def test_a_pod_under_a_new_address_is_a_new_worker(tmp_path):
    old, new = FakeTriton(), FakeTriton(package="b33f")
    async with served(tmp_path, "policy: none", [old, new], FakeSource()) as (found, source):
        source.set(worker("w0", old))
        await become(found, w0="up")
        old.pause()
        call = found.stub.ModelInfer(request(timeout=20_000_000))
        await eventually(lambda: old.busy)
        source.set(worker("w0", new))

        async def replaced():
            return (await found.status()).package == "b33f"

        await until(replaced)
        call.cancel()
        assert (await found.infer(request())).parameters["proa.worker"].string_param == "w0"
        assert new.calls["deployed"] >= 2


async def test_a_worker_that_stays_after_all_is_taken_back(tmp_path):
    fakes = [FakeTriton()]
    async with served(tmp_path, "policy: none", fakes) as (found, source):
        await become(found, w0="up")
        fakes[0].pause()
        call = found.stub.ModelInfer(request(timeout=20_000_000))
        await eventually(lambda: fakes[0].busy)
        source.set(worker("w0", fakes[0], state=DRAINING))
        await become(found, w0="draining")
        source.set(worker("w0", fakes[0]))
        fakes[0].resume()
        assert (await call).parameters["proa.source"].string_param == "worker"
        await become(found, w0="up")
        await found.infer(request())


async def test_a_worker_with_another_model_is_not_used_and_says_why(tmp_path):
    path = write_spec(tmp_path, "policy: none")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("shape: [10]", "shape: [12]"), encoding="utf-8")
    async with contextlib.AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeTriton())
        source = FakeSource(worker("w0", fake))
        found = await stack.enter_async_context(frontend(source=source, specs=str(path)))

        async def told():
            return "hosts another model" in (await found.status()).workers[0].state

        await until(told)
        state = (await found.status()).workers[0].state
        assert "its output 'logits' has shape [10], not [12]" in state
        assert (await found.page("/readyz"))[0] == 503


async def test_parity_of_another_code_is_not_used(tmp_path):
    fakes = [FakeTriton(), FakeTriton()]
    fakes[1].code = "sum:3:1"
    async with served(tmp_path, "policy: parity", fakes) as (found, _):
        await become(found, w0="up", w1="up")
        roles = {w.name: list(w.roles) for w in (await found.status()).workers}
        assert roles == {"w0": ["deployed", "parity"], "w1": ["deployed"]}


async def test_a_dedicated_pool_by_label(tmp_path):
    fakes = [FakeTriton() for _ in range(3)]
    text = "policy: parity, pool: dedicated, groupMsMax: 1"
    async with served(tmp_path, text, fakes, FakeSource()) as (found, source):
        source.set(*workers(fakes[:2]), worker("p0", fakes[2], role="parity-worker"))
        await become(found, w0="up", w1="up", p0="up")
        roles = {w.name: list(w.roles) for w in (await found.status()).workers}
        assert roles == {"w0": ["deployed"], "w1": ["deployed"], "p0": ["parity"]}
        async with Load(found.address) as load:
            await load.more(20)
        assert fakes[2].calls["deployed"] == 0
        assert fakes[2].calls["parity.0"] > 1


async def test_coders_come_and_go(tmp_path):
    fakes = [FakeTriton() for _ in range(3)]
    text = "policy: parity, groupMsMax: 1, idleReserve: 0, placement: pod"
    async with served(tmp_path, text, fakes) as (found, source), Coder("encoder") as encoder:
        await become(found, w0="up", w1="up", w2="up")
        async with Load(found.address) as load:
            await load.more(10)
            assert await encoder.calls() == 0
            source.set(*workers(fakes), peer("e0", encoder.address, role="encoder"))

            async def encodes():
                await load.more(5)
                return await encoder.calls() > 5

            await until(encodes)
            source.set(*workers(fakes))
            await encoder.stop()
            lost = await found.metric("proa_redundancy_lost_total")
            parity = sum(fake.calls["parity.0"] for fake in fakes)
            await load.more(30)
            assert sum(fake.calls["parity.0"] for fake in fakes) > parity
            assert await found.metric("proa_redundancy_lost_total") <= lost + 2  # were under way
        assert load.errors == []


async def test_frontends_learn_of_each_other(tmp_path):
    source = FakeSource(peer("f1"), peer("f0"))
    async with served(tmp_path, "policy: none", [FakeTriton()], source, pod="f1") as (found, _):
        await until(lambda: sees(found, 2, 1))
        source.set(peer("f1"))
        await until(lambda: sees(found, 1, 0))


def slice_of(name, fake, *, ready=True, **more):
    """An EndpointSlice with one pod, which is the fake worker."""
    state = {"ready": ready, "serving": True, "terminating": not ready}
    found = endpoint_slice(f"{name}-slice", endpoint(name, "127.0.0.1", node=name, **state), **more)
    (port,) = (port for port in found["ports"] if port["name"] == "grpc")
    port["port"] = fake.port
    return found


async def test_a_frontend_in_a_cluster_follows_its_slices(tmp_path, monkeypatch):
    fakes = {name: FakeTriton(service_s=0.002) for name in ("a", "b", "c")}
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(fake_kube())
        for fake in fakes.values():
            await stack.enter_async_context(fake)
        kubeconfig(tmp_path, str(kube.url))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        for name in ("a", "b"):
            kube.put(slice_of(name, fakes[name]))
        path = str(write_spec(tmp_path, "policy: none"))
        found = await stack.enter_async_context(
            frontend(discovery="kubernetes", instance="r", pod="f1", specs=path)
        )
        await become(found, a="up", b="up")
        load = await stack.enter_async_context(Load(found.address))
        await load.more(20)
        kube.put(slice_of("c", fakes["c"]))
        kube.put(slice_of("a", fakes["a"], ready=False))
        await become(found, b="up", c="up")
        kube.delete("endpointslices", "a-slice")
        for name in ("f0", "f1"):
            kube.put(slice_of(name, fakes["a"], role="frontend", model=""))
        await until(lambda: sees(found, 2, 1))
        await load.more(20)
        assert load.errors == []
        assert {w.domain for w in (await found.status()).workers} == {"b", "c"}


async def sees(found, count, index):
    metrics = [await found.metric(name) for name in ("proa_frontends", "proa_frontend_index")]
    return metrics == [count, index]


async def test_an_api_server_that_cannot_be_reached_stops_nothing(tmp_path, monkeypatch):
    config = tmp_path / "kubeconfig"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: [{name: c, user: {token: t}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: c, namespace: n}}]\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    settings = {"discovery": "kubernetes", "instance": "r", "specs": str(write_spec(tmp_path))}
    async with frontend(**settings) as found:

        async def errors():
            return await found.metric("proa_frontend_discovery_errors_total") >= 1

        await until(errors)
        assert (await found.page("/livez"))[0] == 200
        assert (await found.page("/readyz"))[0] == 503
