"""`proa chaos manifest`: objects that Kubernetes takes, with the rights that the file needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proa.cli.main import main
from proa.errors import InvalidRequest
from proa.runtime.settings import from_env
from proa_chaos.experiment import Workload
from proa_chaos.file import load_experiment
from proa_chaos.kubernetes.manifest import Place, deadline_s, manifest, rules
from proa_chaos.kubernetes.settings import ChaosSettings

LIBRARY = Path(__file__).resolve().parents[2] / "chaos" / "experiments"
KILLED, SLOW = LIBRARY / "worker-killed.yaml", LIBRARY / "one-slow-worker.yaml"
DRAIN = LIBRARY / "node-drain.yaml"
LOCKED = {"token_secret": "t", "tls_secret": "s", "client_tls_secret": "c"}


def objects(path: Path = KILLED, **more: Any) -> dict[str, Any]:
    place = Place(release="demo", namespace="models", image="registry.example/services:1", **more)
    found = manifest(load_experiment(path), path.read_text(), place)
    return {one["kind"]: one for one in found}


def granted(path: Path) -> set[str]:
    return {
        f"{verb} {resource}"
        for rule in rules(load_experiment(path), "demo", "job")
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("version", ["1.29", "1.36"])
@pytest.mark.parametrize("locks", [{}, LOCKED])
def test_kubernetes_takes_it(version: str, locks: dict[str, Any]) -> None:
    for one in objects(**locks).values():
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_of_the_library_can_be_a_job(path: Path) -> None:
    job = objects(path)["Job"]
    assert job["spec"]["activeDeadlineSeconds"] > 120
    assert objects(path)["ConfigMap"]["data"]["experiment.yaml"] == path.read_text()


def test_it_may_no_more_than_the_experiment_does() -> None:
    least = {"list pods", "create events", "create leases", "get leases", "update leases"}
    least |= {"get jobs", "patch jobs"}
    assert granted(SLOW) == least
    assert granted(KILLED) == least | {"delete pods"}
    assert {one["kind"] for one in objects().values()} == {
        "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Job",
    }  # fmt: skip


def test_an_eviction_may_not_delete(tmp_path: Path) -> None:
    path = tmp_path / "evict.yaml"
    text = KILLED.read_text().replace(
        "action: kill", "action: kill\n      parameters: {how: evict}"
    )
    path.write_text(text)
    assert "create pods/eviction" in granted(path)
    assert "delete pods" not in granted(path)


def test_a_drain_evicts_and_only_a_cordon_goes_beyond_the_namespace(tmp_path: Path) -> None:
    found = objects(DRAIN)
    assert "create pods/eviction" in granted(DRAIN)
    assert not {"delete pods", "patch nodes"} & granted(DRAIN)
    assert "ClusterRole" not in found
    assert nodes_env(found) == "false"
    path = tmp_path / "cordon.yaml"
    path.write_text(
        DRAIN.read_text().replace(
            "action: drain", "action: drain\n      parameters: {cordon: true}"
        )
    )
    found = objects(path)
    (rule,) = found["ClusterRole"]["rules"]
    assert (rule["resources"], rule["verbs"]) == (["nodes"], ["get", "list", "patch"])
    binding = found["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == found["ClusterRole"]["metadata"]["name"]
    assert binding["subjects"][0]["name"] == found["ServiceAccount"]["metadata"]["name"]
    assert nodes_env(found) == "true"
    for one in found.values():
        kubernetes_validate.validate(one, "1.36", strict=True)


def nodes_env(found: dict[str, Any]) -> str:
    (container,) = found["Job"]["spec"]["template"]["spec"]["containers"]
    return next(one["value"] for one in container["env"] if one["name"] == "PROA_CHAOS_NODES")


def test_the_service_takes_the_environment() -> None:
    (container,) = objects(**LOCKED, seed=3)["Job"]["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one.get("value", "x") for one in container["env"]}
    settings = from_env(ChaosSettings, env)
    assert settings.address == "demo-proa-frontend.models.svc:8001"
    assert (settings.instance, settings.namespace, settings.seed) == ("demo", "models", 3)
    assert settings.job == "demo-proa-chaos-worker-killed"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(settings.tls_dir), str(settings.client_tls_dir), "/etc/proa/token"} <= mounts


def test_the_pod_is_restricted() -> None:
    pod = objects()["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["restartPolicy"] == "Never"
    assert objects()["Job"]["spec"]["backoffLimit"] == 0


def test_the_cluster_stops_it_only_after_its_own_limits() -> None:
    workload = Workload(before_s=3, during_s=5, after_s=3, recovery_s=60)
    assert deadline_s(workload) > 71 + 120


def test_what_no_job_can_have_is_refused() -> None:
    experiment = load_experiment(KILLED)
    place = Place(release="demo", namespace="models", image="i")
    with_file = replace(experiment, workload=Workload(inputs=Path("x.npz")))
    with pytest.raises(InvalidRequest, match=r"workload\.inputs"):
        manifest(with_file, "", place)
    with pytest.raises(InvalidRequest, match="--release 'De Mo'"):
        manifest(experiment, "", replace(place, release="De Mo"))
    with pytest.raises(InvalidRequest, match="at most 63"):
        manifest(replace(experiment, name="x" * 60), "", place)


def test_the_command_prints_yaml_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["chaos", "manifest", str(KILLED), "--release", "demo", "--image", "i:1"]
    assert main(argv) == 0
    kinds = [one["kind"] for one in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Job"]
    assert main([*argv, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 5


def test_a_malformed_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("kind: Something\n")
    assert main(["chaos", "manifest", str(path), "--release", "d", "--image", "i"]) == 2
    assert "x.yaml:1" in capsys.readouterr().err


def test_chaos_mesh_gets_rights_only_for_what_it_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    text = KILLED.read_text()
    path.write_text(text.replace("action: kill", "action: kill\n      backend: chaos-mesh"))
    assert "delete pods" not in granted(path)
    mesh = [rule for rule in rules(load_experiment(path), "demo", "job") if "chaos" in str(rule)]
    assert mesh[0] == {
        "apiGroups": ["chaos-mesh.org"],
        "resources": ["podchaos"],
        "verbs": ["create", "get", "delete"],
    }
