"""The store in the chart: its shards apart, its rights the least, its users those of the docs."""

from __future__ import annotations

import re
from typing import Any

import helm_python
import pytest

from helm.chart import CHART, ROOT, environment, one, over, pods, problems
from helm.release import of_kind, render, selects
from helm.test_extras_network import CHAOS_STORE, MODELS, STORE, edges, wanted_by_all
from proa.store.settings import AgentSettings, CoordinatorSettings

NEAR = ("clientsFrom", "storeClientsFrom")
ON: dict[str, Any] = {
    "store": {"enabled": True, "image": "valkey", "auth": {"existingSecret": "users"}}
}


def shards(values: dict[str, Any]) -> dict[str, Any]:
    return one(render(over(ON, values)), "StatefulSet", "demo-proa-store")["spec"]


def coordinators(values: dict[str, Any]) -> dict[str, str]:
    (container,) = one(render(over(ON, values)), "Deployment", "demo-proa-coordinator")["spec"][
        "template"
    ]["spec"]["containers"]
    return environment(container)


def test_without_it_there_is_nothing_of_it() -> None:
    assert not [d for d in render() if "store" in d["metadata"]["name"]]
    assert of_kind(render(), "StatefulSet") == {}


def test_a_coordinator_knows_every_shard_by_its_name() -> None:
    env = coordinators({"store": {"shards": 5, "k": 3, "r": 2}})
    (service,) = (d for n, d in of_kind(render(ON), "Service").items() if n == "demo-proa-store")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"], "a shard is asked before it is whole"
    found = CoordinatorSettings(shards=env["PROA_STORE_SHARDS"], state="x").addresses
    host = "demo-proa-store-4.demo-proa-store.prod.svc"
    assert len(found) == 5
    assert (found[4].agent, found[4].server) == (f"{host}:8020", f"{host}:6379")
    assert len({address.domain for address in found}) == 5
    assert (env["PROA_STORE_K"], env["PROA_STORE_R"]) == ("3", "2")
    assert env["PROA_STORE_STATE"] == "configmap:demo-proa-store"


def test_shards_share_no_node_unless_that_is_asked_for() -> None:
    pod = shards({})["template"]
    affinity = pod["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert selects(term["labelSelector"], pod["metadata"]["labels"])
    soft = {"spread": {"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}}
    affinity = shards({"store": soft})["template"]["spec"]["affinity"]["podAntiAffinity"]
    (wish,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["podAffinityTerm"]["topologyKey"] == "zone"


@pytest.mark.parametrize("r", [1, 2])
def test_at_most_r_shards_are_evicted_at_once(r: int) -> None:
    budgets = of_kind(render(over(ON, {"store": {"r": r}})), "PodDisruptionBudget")
    assert budgets["demo-proa-store"]["spec"]["maxUnavailable"] == r
    assert budgets["demo-proa-coordinator"]["spec"]["maxUnavailable"] == 1


def test_a_server_gets_more_memory_than_its_rows() -> None:
    server, _ = shards({"store": {"memoryMiB": 4096}})["template"]["spec"]["containers"]
    assert environment(server)["MAXMEMORY"] == str(4096 << 20)
    assert server["resources"]["limits"]["memory"] == "5184Mi"


def test_rows_are_in_memory_alone_unless_volumes_are_asked_for() -> None:
    spec = shards({})
    assert environment(spec["template"]["spec"]["containers"][0])["APPENDONLY"] == "no"
    assert "volumeClaimTemplates" not in spec
    spec = shards({"store": {"persistence": {"enabled": True, "storageClassName": "fast"}}})
    assert environment(spec["template"]["spec"]["containers"][0])["APPENDONLY"] == "yes"
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"]["storageClassName"] == "fast"


def test_a_coordinator_may_use_its_lease_and_its_config_map() -> None:
    objects = render(ON)
    rules = one(objects, "Role", "demo-proa-coordinator")["rules"]
    found = {(r["resources"][0], *r["resourceNames"], *r["verbs"]) for r in rules}
    assert found == {
        ("leases", "demo-proa-store", "get", "update"),
        ("configmaps", "demo-proa-store", "get", "update"),
    }
    assert "data" not in one(objects, "ConfigMap", "demo-proa-store"), "an upgrade would reset it"
    assert one(objects, "Lease", "demo-proa-store")
    tokens = {name: pod["automountServiceAccountToken"] for name, pod in pods(objects)}
    assert tokens["demo-proa-coordinator"]
    assert not tokens["demo-proa-store"]


def test_passwords_come_from_the_secret_and_go_to_whom_they_concern() -> None:
    found = {}
    for name, pod in pods(render(ON)):
        for volume in pod.get("volumes", ()):
            if volume["name"] == "users":
                assert volume["secret"]["secretName"] == "users"
                found[name] = {item["key"] for item in volume["secret"]["items"]}
    assert found == {"demo-proa-store": {"agent", "reader"}, "demo-proa-coordinator": {"reader"}}


def test_the_users_may_send_what_the_docs_say() -> None:
    text = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("An agent's ACL user needs"))
    documented = re.findall(r"`(\+[^`]+)`", line)
    script = (CHART / "files" / "valkey.sh").read_text(encoding="utf-8")
    always = re.findall(r"^(?:agent|reader)='([^']+)'$", script, re.MULTILINE)
    for_faults = re.findall(r'agent="\$agent ([^"]+)"$', script, re.MULTILINE)
    assert documented == always + for_faults


def test_the_store_s_edges() -> None:
    clients = {"clientsFrom": [{"namespaceSelector": {}}]}
    clients["storeClientsFrom"] = clients["clientsFrom"]
    objects = render(over(ON, {"models": MODELS, "networkPolicy": clients}))
    ours = {e for e in wanted_by_all(objects) if {"store", "coordinator"} & set(e)}
    assert ours == STORE
    trainers = {e for e in edges(objects, "Ingress") if e[0] == "{'namespaceSelector': {}}"}
    assert {e[1:] for e in trainers} >= {("store", 8020), ("store", 6379), ("coordinator", 8021)}


def test_snapshots_may_go_to_buckets() -> None:
    s3 = {
        "enabled": True,
        "endpoint": "https://s3.example",
        "region": "r",
        "existingSecret": "keys",
    }
    objects = render(over(ON, {"store": {"snapshots": {"s3": s3}}}))
    pod = one(objects, "Deployment", "demo-proa-coordinator")["spec"]["template"]["spec"]
    env = environment(pod["containers"][0])
    assert env["PROA_STORE_S3_ENDPOINT"] == "https://s3.example"
    assert env["PROA_STORE_S3_REGION"] == "r"
    keys = {e["name"] for e in pod["containers"][0]["env"] if e["name"].startswith("AWS_")}
    assert keys == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    policy = one(objects, "NetworkPolicy", "demo-proa-coordinator")
    assert [port["port"] for port in policy["spec"]["egress"][-1]["ports"]] == [443, 80]
    assert [problem for document in objects for problem in problems(document)] == []
    assert "S3" not in str(one(render(ON), "Deployment", "demo-proa-coordinator"))


def test_experiments_reach_the_store_and_its_shards_take_faults() -> None:
    chaos = {"chaos": {"enabled": True, "experiments": [{"name": "one", "file": "x"}]}}
    near = {"networkPolicy": {key: [{"namespaceSelector": {}}] for key in NEAR}}
    objects = render(over(ON, over(chaos, {**near, "tls": {"enabled": True}})))
    ours = {e for e in wanted_by_all(objects) if {"store", "coordinator"} & set(e)}
    assert ours == STORE | CHAOS_STORE
    server, agent = one(objects, "StatefulSet", "demo-proa-store")["spec"]["template"]["spec"][
        "containers"
    ]
    assert environment(server)["FAULTS"] == "yes"
    assert environment(agent)["PROA_STORE_FAULTS"] == "true"
    pod = one(objects, "Job", "demo-proa-chaos-one")["spec"]["template"]["spec"]
    env = environment(pod["containers"][0])
    assert env["PROA_CHAOS_STORE"] == "demo-proa-coordinator.prod.svc:8021"
    (users,) = [v["secret"] for v in pod["volumes"] if v["name"] == "users"]
    assert (users["secretName"], users["items"]) == ("users", [{"key": "reader", "path": "reader"}])
    assert [problem for document in objects for problem in problems(document)] == []


def test_without_chaos_nobody_takes_faults() -> None:
    server, agent = shards({})["template"]["spec"]["containers"]
    assert environment(server)["FAULTS"] == "no"
    assert "PROA_STORE_FAULTS" not in environment(agent)
    chaos = {"enabled": True, "experiments": [{"name": "one", "file": "x"}]}
    job = one(render({"chaos": chaos}), "Job", "demo-proa-chaos-one")["spec"]["template"]["spec"]
    assert "PROA_CHAOS_STORE" not in environment(job["containers"][0])
    assert "users" not in {volume["name"] for volume in job["volumes"]}


def test_pods_say_their_role_in_experiments() -> None:
    objects = render(ON)
    for kind, name, role in (
        ("StatefulSet", "demo-proa-store", "shard"),
        ("Deployment", "demo-proa-coordinator", "store-coordinator"),
    ):
        spec = one(objects, kind, name)["spec"]
        assert spec["template"]["metadata"]["labels"]["proa.dev/role"] == role
        assert "proa.dev/role" not in spec["selector"]["matchLabels"]


def test_certificates_are_for_the_store_and_for_every_door() -> None:
    objects = render(over(ON, {"tls": {"enabled": True}}))
    certificate = one(objects, "Certificate", "demo-proa-tls-store")["spec"]
    assert certificate["dnsNames"] == ["proa-store"]
    assert certificate["issuerRef"]["name"] == "demo-proa-ca"
    for name, pod in pods(objects):
        if name in ("demo-proa-store", "demo-proa-coordinator"):
            for container in pod["containers"]:
                env = environment(container)
                folder = env.get("PROA_STORE_TLS_DIR") or env.get("TLS")
                mounts = {m["mountPath"] for m in container["volumeMounts"]}
                assert folder in mounts, (name, container["name"])


def test_settings_have_names_that_the_services_know() -> None:
    values = {"store": {"settings": {"callsMax": 7}, "coordinator": {"settings": {"callsMax": 8}}}}
    _, agent = shards(values)["template"]["spec"]["containers"]
    assert environment(agent)["PROA_STORE_CALLS_MAX"] == "7"
    assert coordinators(values)["PROA_STORE_CALLS_MAX"] == "8"
    assert AgentSettings(shard=0, coordinator="x:1").server == "127.0.0.1:6379"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"store": {"image": ""}}, "store.image: needs an image"),
        ({"store": {"auth": {"existingSecret": ""}}}, "store.auth.existingSecret: needs a Secret"),
        ({"store": {"k": 4}}, "store.shards: 4 are fewer than the k \\+ r = 5"),
        ({"store": {"r": 0}}, "r: minimum|minimum: got 0"),
        (
            {"rbac": {"create": False}, "serviceAccount": {"names": {"frontend": "f"}}},
            "coordinators need a Role",
        ),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(over(ON, values))
