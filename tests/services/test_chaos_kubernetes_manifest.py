"""`proa chaos manifest` of an experiment on a store: the Job knows the coordinators, and only the
password that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from proa.cli.main import main
from proa.errors import InvalidRequest
from proa.runtime.settings import from_env
from proa_chaos.file import load_experiment
from proa_chaos.kubernetes.manifest import Place, manifest
from proa_chaos.kubernetes.settings import ChaosSettings

STORE = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {name: one}
spec:
  title: t
  description: d
  workload: {store: {rows: 1000}}
  faults:
    - name: f
      action: ACTION
      selector: {labelSelectors: {proa.dev/role: shard}}
  hypothesis: [{phase: all, measure: wrong, atMost: 0}]
"""
PLACE = Place(release="demo", namespace="models", image="registry.example/services:1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(STORE.replace("ACTION", "kill-shard"))
    return path


def job(found: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in found if one["kind"] == "Job")["spec"]["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"] if "value" in one}


def test_it_knows_the_coordinators_and_may_delete_pods(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--release", "demo", "--namespace", "models", "--image", PLACE.image]
    more = ["--users-secret", "users", "--tls-secret", "tls", "--json"]
    assert main(["chaos", "manifest", str(file), *arguments, *more]) == 0
    found = json.loads(capsys.readouterr().out)["items"]
    for one in found:
        kubernetes_validate.validate(one, "1.29", strict=True)
    (pods,) = [
        rule["verbs"]
        for one in found
        if one["kind"] == "Role"
        for rule in one["rules"]
        if rule["resources"] == ["pods"]
    ]
    assert pods == ["list", "delete"]
    pod = job(found)
    settings = from_env(ChaosSettings, environment(pod))
    assert settings.store == "demo-proa-coordinator.models.svc:8021"
    assert settings.reader_user == "reader"
    assert str(settings.reader_password_file) == "/etc/proa/users/reader"
    assert str(settings.tls_dir) == "/etc/proa/tls"
    (users,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "users"]
    assert users["secretName"] == "users"
    assert users["items"] == [{"key": "reader", "path": "reader"}]


@pytest.mark.parametrize("action", ["stale-disk", "bitflip\n      parameters: {target: embedding}"])
def test_faults_of_agents_need_no_right_on_pods(file: Path, action: str) -> None:
    file.write_text(STORE.replace("ACTION", action))
    found = manifest(load_experiment(file), file.read_text(), PLACE)
    rules = next(one for one in found if one["kind"] == "Role")["rules"]
    assert rules[0]["verbs"] == ["list"]
    assert "PROA_CHAOS_READER_USER" not in environment(job(found))


def test_passwords_are_for_experiments_on_a_store_alone() -> None:
    path = Path(__file__).resolve().parents[2] / "chaos" / "experiments" / "worker-killed.yaml"
    place = Place("demo", "models", PLACE.image, users_secret="users")
    with pytest.raises(InvalidRequest, match="--users-secret"):
        manifest(load_experiment(path), path.read_text(), place)
    plain = Place("demo", "models", PLACE.image)
    pod = job(manifest(load_experiment(path), path.read_text(), plain))
    assert "PROA_CHAOS_STORE" not in environment(pod)
