"""Every profile is rendered, linted and valid, and its pods are what the chart promises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from helm.chart import (
    CHART,
    PROFILES,
    SITE,
    VERSIONS,
    containers,
    documents,
    environment,
    of_kind,
    one,
    over,
    pods,
    problems,
    profile,
    quantity,
    render,
)

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/helm/test_render.py -k golden"
GIB = 2**30
DASHBOARD = "dashboard.yaml"  # long, and compared with its source by a test of its own


def test_the_profiles_are_those_that_were_promised() -> None:
    promised = {"default", "gpu", "ha", "tls", "dedicated", "observe", "minimal"}
    assert set(PROFILES) >= promised


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_valid_for_the_oldest_and_the_newest_kubernetes(name: str) -> None:
    found = documents(profile(name))
    assert of_kind(found, "Deployment")
    assert [problem for d in found for problem in problems(d)] == []


def test_the_fast_validator_finds_what_kubernetes_validate_finds() -> None:
    good = one(documents(profile("default")), "Deployment", "demo-proa-frontend")
    bad = over(good, {"spec": {"replicas": "many", "nonsense": 1}})
    for version in VERSIONS:
        kubernetes_validate.validate(good, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(bad, version, strict=True)
    assert len(problems(bad)) == 2 * len(VERSIONS)


@pytest.mark.parametrize("name", PROFILES)
def test_lint_has_nothing_to_say(name: str) -> None:
    report = helm_python.lint(CHART, profile(name), strict=True, kube_version="v1.29.0")
    assert report["messages"] == []
    assert report["errors"] == []


def test_lint_of_the_chart_as_it_is() -> None:
    """Without a registry: what `helm lint helm/proa` says."""
    assert helm_python.lint(CHART, strict=True)["errors"] == []


@pytest.mark.parametrize("name", ["default", "ha"])
def test_golden(name: str) -> None:
    """A change of the templates shows here as what it does to a cluster."""
    file = GOLDEN / f"{name}.yaml"
    found = render(profile(name))
    parts = (f"# {path}\n{found[path].strip()}\n" for path in found if path != DASHBOARD)
    text = "\n".join(parts)
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text, f"meant? then: {UPDATE}"


def test_a_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with helm_python.Chart.load(archive) as chart:
        found = chart.render(profile("default"), name="demo", namespace="prod")
    texts = {path.rpartition("/templates/")[2]: text for path, text in found.items()}
    assert {p: t for p, t in texts.items() if t.strip()} == render(profile("default"))


def test_two_renders_are_the_same() -> None:
    assert render(profile("ha")) == render(profile("ha"))


@pytest.mark.parametrize("name", PROFILES)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    for where, pod in pods(documents(profile(name))):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["runAsUser"] == 65532, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert pod["enableServiceLinks"] is False, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), where
        for container in containers(pod):
            mine = container["securityContext"]
            assert mine["allowPrivilegeEscalation"] is False, where
            assert mine["readOnlyRootFilesystem"] is True, where
            assert mine["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert "memory" in container["resources"]["limits"], where


@pytest.mark.parametrize("name", PROFILES)
def test_every_directory_in_memory_or_on_the_node_is_limited(name: str) -> None:
    for where, pod in pods(documents(profile(name))):
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume:
                assert quantity(volume["emptyDir"]["sizeLimit"]) > 0, where


@pytest.mark.parametrize("name", PROFILES)
def test_every_mount_has_a_volume_and_every_volume_a_mount(name: str) -> None:
    for where, pod in pods(documents(profile(name))):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {m["name"] for c in containers(pod) for m in c.get("volumeMounts", [])}
        assert mounts == volumes, where


@pytest.mark.parametrize("name", PROFILES)
def test_services_find_their_pods_and_nobody_elses(name: str) -> None:
    found = documents(profile(name))
    deployments = [*of_kind(found, "Deployment"), *of_kind(found, "StatefulSet")]
    for service in of_kind(found, "Service"):
        labels = service["metadata"]["labels"]
        chosen = [d for d in deployments if selects(service, d)]
        assert len(chosen) == 1, service["metadata"]["name"]
        template = chosen[0]["spec"]["template"]
        ports = {p["name"]: p for c in template["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= set(ports)
        if "proa.dev/role" in labels:
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["publishNotReadyAddresses"] is False
            assert labels["proa.dev/role"] == template["metadata"]["labels"]["proa.dev/role"]
            assert service["spec"]["ports"][0]["port"] == ports["grpc"]["containerPort"]


def selects(service: dict[str, Any], deployment: dict[str, Any]) -> bool:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return service["spec"]["selector"].items() <= labels.items()


def test_the_client_service_has_no_role() -> None:
    found = documents(profile("default"))
    assert "proa.dev/role" not in one(found, "Service", "demo-proa-frontend")["metadata"]["labels"]
    peers = one(found, "Service", "demo-proa-frontend-peers")["metadata"]["labels"]
    assert peers["proa.dev/role"] == "frontend"
    workers = one(found, "Service", "demo-proa-worker-digits")["metadata"]["labels"]
    assert workers["proa.dev/model"] == "digits"


@pytest.mark.parametrize("name", PROFILES)
def test_a_pod_has_time_to_drain(name: str) -> None:
    for where, pod in pods(documents(profile(name))):
        for container in pod["containers"]:
            drain = [v for k, v in environment(container).items() if k.endswith("_DRAIN_S")]
            assert not drain or pod["terminationGracePeriodSeconds"] >= float(drain[0]) + 5, where


def test_the_default_fits_one_node_with_4_gib() -> None:
    found = documents(profile("default"))
    memory = cpu = 0.0
    for deployment in of_kind(found, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        replicas = deployment["spec"]["replicas"]
        memory += replicas * request(pod, "memory")
        cpu += replicas * request(pod, "cpu")
    tests = [pod for d in of_kind(found, "Pod") for _, pod in pods([d])]
    memory += max((request(pod, "memory") for pod in tests), default=0.0)
    assert memory <= 3 * GIB
    assert cpu <= 2


def request(pod: dict[str, Any], what: str) -> float:
    """What the scheduler reserves for a pod: init containers run one after the other."""
    amounts = [quantity(c["resources"]["requests"][what]) for c in pod["containers"]]
    first = [quantity(c["resources"]["requests"][what]) for c in pod.get("initContainers", [])]
    return max(sum(amounts), *first, 0.0)


def test_notes_say_how_to_ask_first() -> None:
    notes = render(profile("default"))["NOTES.txt"]
    assert "port-forward service/demo-proa-frontend 8001:8001" in notes
    assert 'InferInput("image", [1,1,8,8], "FP32")' in notes
    assert "helm test demo --namespace prod" in notes


def test_notes_warn_of_too_few_workers_and_of_chaos() -> None:
    values = over(profile("default"), {"workers": {"replicas": 2}, "chaos": {"enabled": True}})
    notes = render(values)["NOTES.txt"]
    assert "model digits has 2 workers" in notes
    assert "chaos.enabled lets anyone" in notes


def test_without_models_nothing_breaks() -> None:
    found = documents(over(profile("default"), {"models": []}))
    assert one(found, "ConfigMap", "demo-proa-models")["data"] is not None
    assert [problem for d in found for problem in problems(d)] == []


def test_chart_version_is_proas() -> None:
    from proa import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_an_image_is_named_by_registry_tag_and_digest() -> None:
    digest = "sha256:" + "0" * 64
    values = over(
        SITE,
        {
            "global": {"imageRegistry": "mirror.example"},
            "image": {"services": {"tag": "7"}, "worker": {"digest": digest}},
        },
    )
    images = {c["image"] for _, pod in pods(documents(values)) for c in containers(pod)}
    assert images == {"mirror.example/proa-services:7", f"mirror.example/proa-worker-cpu@{digest}"}
