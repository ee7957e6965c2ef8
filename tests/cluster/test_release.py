"""A release on a real cluster, from its installation to its end. The tests build on one another.

Not run where there is no cluster; docs/e2e.md says how.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
import yaml

from cluster.kube import Kube
from cluster.settings import Settings
from cluster.traffic import Account, Traffic, with_proa, with_triton
from proa.client import AsyncClient

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.asyncio(loop_scope="module"),
]

CHART = Path(__file__).resolve().parents[2] / "helm" / "proa"
MODEL, INPUT = "digits", "image"
# A pod of anything may go only if it is not alone; we come from outside of the cluster.
WORDS = (
    "--set-json", "networkPolicy.clientsFrom=[]",
    "--set", "frontend.service.type=NodePort", "--set", "frontend.replicas=2",
    "--set", "encoder.replicas=2", "--set", "decoder.replicas=2",
)  # fmt: skip
COMPONENTS = ("frontend", "encoder", "decoder", "worker")


@dataclass
class Release:
    kube: Kube
    address: str
    rate_hz: float
    queries: np.ndarray[tuple[int, ...], np.dtype[np.float32]]

    def by_proa(self, client: AsyncClient) -> Traffic:
        return Traffic(with_proa(client, MODEL, INPUT, self.queries), self.rate_hz)

    def by_triton(self, client: triton.InferenceServerClient) -> Traffic:
        return Traffic(with_triton(client, MODEL, INPUT, self.queries), self.rate_hz)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def release(settings: Settings) -> AsyncIterator[Release]:
    kube = Kube(settings)
    if await kube.has_namespace():
        pytest.fail(f"namespace {settings.namespace} is there, and the tests would delete it")
    full = settings.release if "proa" in settings.release else f"{settings.release}-proa"
    queries = np.random.default_rng(7).random((64, 1, 1, 8, 8), dtype=np.float32)
    try:
        await kube.install(str(CHART), *WORDS)
        address = settings.address or await kube.node_port(f"{full}-frontend")
        yield Release(kube, address, settings.rate_hz, queries)
    finally:
        await kube.kubectl("delete", "namespace", settings.namespace, "--wait=false")


async def each_pod_goes(release: Release, component: str, traffic: Traffic) -> Account:
    """Delete the pods of a component one by one, each after the last one's successor is ready."""
    async with traffic:
        await traffic.more(50)
        for pod in await release.kube.pods(component):
            await release.kube.delete(pod)
            await release.kube.wait_settled()
        await traffic.more(50)
    return traffic.account


async def under_load(release: Release, *values: str) -> Account:
    """Upgrade the release to other values while queries come."""
    async with AsyncClient(release.address, deadline_s=10.0) as client:
        traffic = release.by_proa(client)
        async with traffic:
            await traffic.more(50)
            await release.kube.install(str(CHART), *WORDS, *values)
            await release.kube.wait_settled()
            await traffic.more(50)
    return traffic.account


async def test_the_first_inference_is_answered(release: Release) -> None:
    async with AsyncClient(release.address, deadline_s=60.0) as client:
        answer = await client.infer(MODEL, {INPUT: release.queries[0]})
    assert answer["logits"].shape == (1, 10)


async def test_helm_test_passes(release: Release, settings: Settings) -> None:
    await release.kube.helm("test", settings.release, "--logs")


@pytest.mark.parametrize("component", COMPONENTS)
async def test_no_query_fails_when_pods_go(release: Release, component: str) -> None:
    async with AsyncClient(release.address, deadline_s=10.0) as client:
        (await each_pod_goes(release, component, release.by_proa(client))).check()


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c != "frontend"])
async def test_no_query_of_tritonclient_fails_when_pods_go(
    release: Release, component: str
) -> None:
    client = triton.InferenceServerClient(release.address)
    try:
        (await each_pod_goes(release, component, release.by_triton(client))).check()
    finally:
        await client.close()


async def test_no_query_fails_when_the_model_changes(release: Release, tmp_path: Path) -> None:
    """Every worker is replaced, and old and new never share a group."""
    models = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["models"]
    models[0]["spec"]["model"]["maxBatch"] = 4
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump({"models": models}), encoding="utf-8")
    before = {pod.uid for pod in await release.kube.pods("worker")}
    account = await under_load(release, "--values", str(file))
    account.check()
    assert not before & {pod.uid for pod in await release.kube.pods("worker")}


async def test_no_query_fails_in_an_upgrade(release: Release) -> None:
    """Every pod of every component is replaced."""
    rolled = [
        word
        for component in ("frontend", "encoder", "decoder", "workers")
        for word in ("--set-string", f"{component}.podAnnotations.rolled=again")
    ]
    before = {pod.uid for pod in await release.kube.pods()}
    account = await under_load(release, *rolled)
    account.check()
    assert not before & {pod.uid for pod in await release.kube.pods()}


async def test_nothing_is_left_after_uninstall(release: Release, settings: Settings) -> None:
    await release.kube.uninstall()
    with contextlib.suppress(TimeoutError):
        await release.kube.until(lambda: nothing_left(release))
    assert await release.kube.left() == []


async def nothing_left(release: Release) -> bool:
    return not await release.kube.left()
