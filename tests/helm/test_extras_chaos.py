"""Experiments as Jobs of the chart: absent unless wanted, and no more rights than they need."""

from __future__ import annotations

from typing import Any

import pytest
from helm_python import HelmError

from helm.chart import environment, problems
from helm.release import Document, of_kind, render

ONE: dict[str, Any] = {"name": "one", "file": "kind: ChaosExperiment\n", "seed": 7, "force": True}
TRAINING = {"name": "two", "file": "spec: {workload: {store: {rows: 9}}}"}
ENABLED = {"chaos": {"enabled": True, "experiments": [ONE]}}
LOCKED = {
    "tls": {"enabled": True, "clientAuth": True},
    "auth": {"tokens": {"existingSecret": "tokens"}},
    "chaos": {"enabled": True, "experiments": [ONE], "token": {"existingSecret": "chaos"}},
}


def of_chaos(objects: list[Document]) -> list[Document]:
    return [one for one in objects if "-chaos" in one["metadata"]["name"]]


def frontend_env(objects: list[Document]) -> dict[str, str]:
    deployment = of_kind(objects, "Deployment")["demo-proa-frontend"]
    return environment(deployment["spec"]["template"]["spec"]["containers"][0])


def test_absent_unless_enabled() -> None:
    assert of_chaos(render()) == []
    only = render({"chaos": {"enabled": True}})
    assert [one["kind"] for one in of_chaos(only)] == ["NetworkPolicy"]


def test_a_job_for_each_that_runs_only_when_asked_for() -> None:
    objects = render(ENABLED)
    job = of_kind(objects, "Job")["demo-proa-chaos-one"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert job["spec"]["backoffLimit"] == 0
    env = environment(job["spec"]["template"]["spec"]["containers"][0])
    assert env["PROA_CHAOS_INSTANCE"] == "demo"
    assert env["PROA_CHAOS_ADDRESS"] == "demo-proa-frontend.prod.svc:8001"
    assert (env["PROA_CHAOS_SEED"], env["PROA_CHAOS_FORCE"]) == ("7", "true")
    assert "PROA_CHAOS_TLS_DIR" not in env
    files = of_kind(objects, "ConfigMap")["demo-proa-chaos"]["data"]
    assert files == {"one.yaml": ONE["file"]}
    assert [problem for one in of_chaos(objects) for problem in problems(one)] == []


def test_with_locks_it_has_the_keys() -> None:
    objects = render(LOCKED)
    pod = of_kind(objects, "Job")["demo-proa-chaos-one"]["spec"]["template"]["spec"]
    env = environment(pod["containers"][0])
    assert env["PROA_CHAOS_TOKEN_FILE"] == "/etc/proa/token/token"
    assert env["PROA_CHAOS_TLS_DIR"] == "/etc/proa/tls"
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {
        "tls": "demo-proa-tls-frontend",
        "client-tls": "demo-proa-tls-client",
        "token": "chaos",
    }
    assert [problem for one in of_chaos(objects) for problem in problems(one)] == []


def test_its_rights_end_at_the_namespace() -> None:
    objects = render(ENABLED)
    assert of_kind(objects, "ClusterRole") == {}
    role = of_kind(objects, "Role")["demo-proa-chaos"]
    granted = {(tuple(r["resources"]), tuple(r["verbs"])) for r in role["rules"]}
    assert granted == {
        (("pods",), ("list", "delete")),
        (("pods/eviction",), ("create",)),
        (("events",), ("create",)),
        (("leases",), ("create",)),
        (("leases",), ("get", "update")),
        (("jobs",), ("get", "patch")),
    }
    binding = of_kind(objects, "RoleBinding")["demo-proa-chaos"]
    assert binding["subjects"][0]["name"] == "demo-proa-chaos"


def test_more_rights_only_where_they_are_wanted() -> None:
    wanted = {**ENABLED["chaos"], "nodes": True, "chaosMesh": True}
    objects = render({"chaos": wanted})
    (rule,) = of_kind(objects, "ClusterRole")["prod-demo-proa-chaos"]["rules"]
    assert (rule["resources"], rule["verbs"]) == (["nodes"], ["get", "list", "patch"])
    binding = of_kind(objects, "ClusterRoleBinding")["prod-demo-proa-chaos"]
    assert binding["subjects"][0] == {
        "kind": "ServiceAccount", "name": "demo-proa-chaos", "namespace": "prod",
    }  # fmt: skip
    (mesh,) = [
        rule
        for rule in of_kind(objects, "Role")["demo-proa-chaos"]["rules"]
        if rule["apiGroups"] == ["chaos-mesh.org"]
    ]
    assert mesh["verbs"] == ["create", "get", "delete"]
    job = of_kind(objects, "Job")["demo-proa-chaos-one"]
    env = environment(job["spec"]["template"]["spec"]["containers"][0])
    assert env["PROA_CHAOS_NODES"] == "true"
    assert [problem for one in of_chaos(objects) for problem in problems(one)] == []
    without = {**wanted, "experiments": []}
    assert of_kind(render({"chaos": without}), "ClusterRole") == {}


def test_frontends_take_faults_only_behind_tokens() -> None:
    assert "PROA_FRONTEND_FAULTS" not in frontend_env(render(ENABLED))
    assert frontend_env(render(LOCKED))["PROA_FRONTEND_FAULTS"] == "true"
    off = {**LOCKED, "chaos": {"enabled": False}}
    assert "PROA_FRONTEND_FAULTS" not in frontend_env(render(off))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chaos": {"experiments": [ONE]}}, "need chaos.enabled=true"),
        ({**ENABLED, "serviceAccount": {"create": False}}, "need rbac.create"),
        ({**LOCKED, "chaos": ENABLED["chaos"]}, "chaos.token.existingSecret"),
        ({"chaos": {"enabled": True, "experiments": [ONE, ONE]}}, "stands there twice"),
        ({"chaos": {"enabled": True, "experiments": [{"name": "one"}]}}, "file"),
        ({"chaos": {"enabled": True, "experiments": [TRAINING]}}, "takes store.enabled=true"),
        ({"chaos": {"enabled": True, "experiments": [{**ONE, "name": "One"}]}}, "name"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError) as caught:
        render(values)
    assert message in str(caught.value)
