"""Faults that Chaos Mesh acts out: an object for each hit, of the Job, gone at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes import mesh_fake
from fakes.kube_fake import fake_kube, kubeconfig
from fakes.release import release
from proa.cluster.connection import Connection
from proa.errors import NotSupported, Unavailable
from proa_chaos.experiment import Choice, Experiment, Fault, Parameters, Probe, Selector, Workload
from proa_chaos.kubernetes.main import run_in_cluster
from proa_chaos.kubernetes.mesh import Mesh
from proa_chaos.plan import Hit
from proa_chaos.result import Verdict
from proa_chaos.selection import ROLE, Target

WORKER = Target("w1", "n1", namespace="models", labels={ROLE: "worker"})
DECODER = Target("decoder", "n2", namespace="models", labels={ROLE: "decoder"})
ONE_POD = {"namespaces": ["models"], "pods": {"models": ["w1"]}}


def fault(action: str, **parameters: Any) -> Fault:
    found = Parameters(**parameters)
    return Fault("f", action, Choice(), parameters=found, backend="chaos-mesh")


def hit(action: str, peer: Target | None = None, **parameters: Any) -> Hit:
    return Hit("1.0", fault(action, **parameters), WORKER, 0.0, 4.0, peer)


SPECS = [
    (
        hit("slow", delay_ms=300),
        4.0,
        "NetworkChaos",
        {
            "action": "delay",
            "direction": "to",
            "delay": {"latency": "300ms", "jitter": "0ms", "correlation": "0"},
            "duration": "4000ms",
        },
    ),
    (
        hit("partition", DECODER),  # no frontend is needed here
        4.0,
        "NetworkChaos",
        {
            "action": "partition",
            "direction": "both",
            "target": {
                "mode": "all",
                "selector": {"namespaces": ["models"], "pods": {"models": ["decoder"]}},
            },
            "duration": "4000ms",
        },
    ),
    (hit("kill"), 0.0, "PodChaos", {"action": "pod-kill", "gracePeriod": 0}),
    (hit("kill"), 1.5, "PodChaos", {"action": "pod-failure", "duration": "1500ms"}),
    (
        hit("cpu-hog", workers=2, load=80),
        4.0,
        "StressChaos",
        {"stressors": {"cpu": {"workers": 2, "load": 80}}, "duration": "4000ms"},
    ),
]


@pytest.mark.parametrize(("one", "ttl_s", "kind", "spec"), SPECS)
async def test_an_object_says_what_the_fault_says(
    tmp_path: Path, one: Hit, ttl_s: float, kind: str, spec: dict[str, Any]
) -> None:
    async with fake_kube() as kube, Connection(kubeconfig(tmp_path, str(kube.url))) as connection:
        created = mesh_fake.install(kube)
        mesh = Mesh(connection, "models", "chaos-1")
        await mesh.check([one])
        await mesh.inject(one, ttl_s)
        (item,) = created
        assert (item["kind"], item["metadata"]["name"]) == (kind, "chaos-1-1-0")
        assert item["spec"] == {"mode": "all", "selector": ONE_POD, **spec}
        assert (kind.lower(), "chaos-1-1-0") in kube.objects
        await mesh.end(one)
        assert (kind.lower(), "chaos-1-1-0") not in kube.objects
        await mesh.end(one)  # what has ended is no error


async def test_without_chaos_mesh_it_is_refused_and_nothing_is_broken(tmp_path: Path) -> None:
    async with fake_kube() as kube, Connection(kubeconfig(tmp_path, str(kube.url))) as connection:
        mesh = Mesh(connection, "models", "chaos-1")
        await mesh.check([])
        with pytest.raises(NotSupported, match="backend: chaos-mesh: Chaos Mesh is not installed"):
            await mesh.check([hit("slow", delay_ms=300)])
        mesh_fake.install(kube)
        kube.discovery[mesh_fake.PATH]["resources"] = [{"name": "podchaos"}]
        with pytest.raises(NotSupported, match=r"chaos-mesh\.org/v1alpha1 has no networkchaos"):
            await mesh.check([hit("slow", delay_ms=300)])
        for wrong in (hit("slow", probability=0.5), hit("slow", program="deployed")):
            with pytest.raises(NotSupported, match="knows no programs and no share"):
                await mesh.check([wrong])
        with pytest.raises(NotSupported, match="does not evict"):
            await mesh.check([hit("kill", how="evict")])
        assert kube.count("create") == 0


async def test_what_is_not_injected_in_time_is_an_error(tmp_path: Path) -> None:
    async with fake_kube() as kube, Connection(kubeconfig(tmp_path, str(kube.url))) as connection:
        mesh_fake.install(kube, injects=False)
        mesh = Mesh(connection, "models", "chaos-1", wait_s_max=0.3)
        one = hit("slow", delay_ms=300)
        with pytest.raises(
            Unavailable, match=r"did not inject .*describe networkchaos chaos-1-1-0"
        ):
            await mesh.inject(one, 4.0)
        await mesh.end(one)
        assert ("networkchaos", "chaos-1-1-0") not in kube.objects


def experiment() -> Experiment:
    one = Choice(Selector(labels={ROLE: "worker"}))
    slow = Fault("s", "slow", one, parameters=Parameters(delay_ms=50), backend="chaos-mesh")
    workload = Workload(
        rate_hz=40, before_s=0.2, during_s=1.0, after_s=0.2, recovery_s=10, queries=8
    )
    return Experiment("one", "t", "d", (Probe("failed", at_most=0),), (slow,), workload=workload)


async def test_a_run_makes_objects_that_its_job_owns_and_deletes_them(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        created = mesh_fake.install(there.kube)
        there.kube.denied = {("delete", "pods")}
        result = await run_in_cluster(experiment(), there.settings(), there.access)
        assert (result.verdict, result.fail_step) == (Verdict.PASS, "")
        (item,) = created
        target = result.done[0].hit.target.name
        assert item["spec"]["selector"]["pods"] == {"models": [target]}
        (owner,) = item["metadata"]["ownerReferences"]
        job = there.kube.objects["jobs", "one"]["metadata"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", "one", job["uid"])
        assert not [name for kind, name in there.kube.objects if kind == "networkchaos"]
