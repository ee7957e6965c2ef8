"""What the chart puts into the environment is what the services read, and they read it strictly."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest

from helm.chart import (
    PROFILES,
    ROOT,
    Values,
    containers,
    documents,
    environment,
    of_kind,
    over,
    pods,
    profile,
)
from proa.cluster.fetch import FetchSettings
from proa.cluster.smoke import SmokeSettings
from proa.decoder.settings import DecoderSettings
from proa.encoder.settings import EncoderSettings
from proa.frontend.settings import FrontendSettings
from proa.runtime.settings import from_env, settings_of
from proa.store.settings import AgentSettings, CoordinatorSettings
from proa.worker.settings import WorkerSettings

SERVICES: dict[str, type[Any]] = {
    "frontend": FrontendSettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
    "worker": WorkerSettings,
    "fetch": FetchSettings,
    "smoke": SmokeSettings,
    "store-agent": AgentSettings,
    "store-coordinator": CoordinatorSettings,
}
# Where the values of a service are, where that is not its name.
SECTIONS = {"worker": "workers", "store-agent": "store", "store-coordinator": "store.coordinator"}
SCHEMAS = {"store-agent": "store", "store-coordinator": "coordinator"}
MODEL: Values = {
    "name": "far",
    "spec": {
        "model": {
            "program": "far.pt2",
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
        }
    },
}
S3 = {
    "url": "s3://bucket/far.tar",
    "sha256": "0" * 64,
    "endpoint": "https://s3.example",
    "region": "eu",
    "existingSecret": "keys",
    "bytesMax": 5_000_000_000,
}
VARIANTS: dict[str, Values] = {
    **{name: profile(name) for name in PROFILES},
    "dns with chaos": over(
        profile("tls"), {"discovery": {"mode": "dns"}, "chaos": {"enabled": True}}
    ),
    "s3": over(profile("default"), {"models": [{**MODEL, "source": {"s3": S3}}]}),
    "fractions": over(profile("default"), {"frontend": {"settings": {"canaryS": 0.25}}}),
}


def running(found: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, str]]]:
    """(pod, service, environment) of every container that runs `proa-service SERVICE`."""
    return [
        (where, container["args"][0], environment(container))
        for where, pod in pods(found)
        for container in containers(pod)
        if "args" in container
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_service_starts_with_what_the_chart_gives_it(name: str) -> None:
    found = running(documents(VARIANTS[name]))
    expected = {"frontend", "store-agent"} if name == "store" else {"frontend", "worker"}
    assert expected <= {service for _, service, _ in found}
    for where, service, env in found:
        # A value from elsewhere (the pod's name, a secret) is known in the cluster alone.
        given = {k: v or "from-elsewhere" for k, v in env.items() if k.startswith("PROA_")}
        if service == "store-agent":
            given["PROA_STORE_SHARD"] = "0"  # a label of the pod
        assert from_env(SERVICES[service], given), where


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variable_stands_twice(name: str) -> None:
    for where, pod in pods(documents(VARIANTS[name])):
        for container in containers(pod):
            names = [entry["name"] for entry in container.get("env", [])]
            assert len(names) == len(set(names)), where


@pytest.mark.parametrize(
    "service", ["frontend", "encoder", "decoder", "worker", "store-agent", "store-coordinator"]
)
def test_every_setting_can_be_set_and_becomes_its_variable(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "helm")
    from schema_parts import NOT_OFFERED, camel, offered

    chosen: Values = {
        "settings": samples(SERVICES[service], offered(SCHEMAS.get(service, service)))
    }
    for key in reversed(SECTIONS.get(service, service).split(".")):
        chosen = {key: chosen}
    values = over(profile("store" if service in SCHEMAS else "default"), chosen)
    (env,) = [e for _, name, e in running(documents(values)) if name == service]
    for one in settings_of(SERVICES[service]).values():
        expected = one.env.split("_", 2)[2] in NOT_OFFERED or one.env in env
        assert expected, f"{one.env}, from {camel(one.env)}"


def samples(cls: type[Any], offered: dict[str, str]) -> Values:
    """A lawful value for each setting."""
    known = {one.env: (field, one) for field, one in settings_of(cls).items()}
    kinds = get_type_hints(cls)
    found: Values = {}
    for name, env in offered.items():
        field, one = known[env]
        if one.choices:
            found[name] = one.choices[0]
        elif one.minimum is not None:
            found[name] = one.minimum if isinstance(one.minimum, int) else float(one.minimum)
        else:
            found[name] = False if kinds[field] is bool else "text"
    return found


def test_a_big_number_is_written_in_full() -> None:
    values = over(profile("default"), {"frontend": {"settings": {"queueMax": 1_000_000}}})
    (env,) = [e for _, name, e in running(documents(values)) if name == "frontend"]
    assert env["PROA_FRONTEND_QUEUE_MAX"] == "1000000"


def test_workers_take_turns_by_a_lease_that_is_theirs() -> None:
    found = documents(profile("tls"))
    (env,) = {tuple(e.items()) for _, name, e in running(found) if name == "worker"}
    lease = dict(env)["PROA_WORKER_RESTART_LEASE"]
    assert lease in {d["metadata"]["name"] for d in of_kind(found, "Lease")}
    rules = {r["metadata"]["name"]: r["rules"] for r in of_kind(found, "Role")}
    assert rules["demo-proa-worker"] == [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [lease],
            "verbs": ["get", "update"],
        }
    ]


def test_rights_are_the_least() -> None:
    roles = of_kind(documents(profile("default")), "Role")
    assert [(role["metadata"]["name"], role["rules"]) for role in roles] == [
        (
            "demo-proa-frontend",
            [
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                }
            ],
        )
    ]
    assert of_kind(documents(profile("minimal")), "Role") == []


@pytest.mark.parametrize("name", PROFILES)
def test_a_token_is_mounted_only_where_there_are_rights(name: str) -> None:
    found = documents(profile(name))
    entitled = {s["name"] for b in of_kind(found, "RoleBinding") for s in b["subjects"]}
    for where, pod in pods(found):
        mounted = pod["automountServiceAccountToken"]
        needed = pod["serviceAccountName"] in entitled and "-test-" not in where
        assert mounted == needed, where
    assert all(not a["automountServiceAccountToken"] for a in of_kind(found, "ServiceAccount"))
