"""Traces and logs: what the values become in the pods, and who may speak to the collector."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from helm.chart import (
    Values,
    containers,
    documents,
    environment,
    of_kind,
    one,
    over,
    pods,
    problems,
    profile,
    render,
)
from proa.runtime.settings import from_env
from proa.runtime.tracing import TracingSettings
from proa.worker.tracing import export_of

URL = "http://otel-collector.observability:4318"
SERVICES = ("decoder", "encoder", "frontend", "worker")


def values(**tracing: Any) -> Values:
    return over(profile("default"), {"tracing": {"endpoint": URL, **tracing}})


def environments(found: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Of the containers that serve, by service."""
    return {
        container["args"][0]: environment(container)
        for _, pod in pods(found)
        for container in containers(pod)
        if container.get("args", [""])[0] in SERVICES
    }


def test_without_a_collector_nobody_traces() -> None:
    found = documents(profile("default"))
    assert "OTEL" not in str(found)
    assert not [d for d in found if d["metadata"]["name"].endswith("-tracing")]


def test_every_service_is_told_the_collector() -> None:
    found = documents(values(sample=0.25, slowMs=80))
    assert [problem for d in found for problem in problems(d)] == []
    envs = environments(found)
    assert sorted(envs) == list(SERVICES)
    for env in envs.values():
        settings = from_env(TracingSettings, env)
        assert (settings.endpoint, settings.protocol) == (URL, "http/protobuf")
        assert settings.attributes is not None
        assert "k8s.pod.name=$(K8S_POD_NAME)" in settings.attributes
    settings = from_env(TracingSettings, envs["frontend"])
    assert (settings.sample, settings.slow_ms) == (0.25, 80.0)


def test_triton_gets_an_address_for_http() -> None:
    grpc = "http://otel-collector.observability:4317"
    found = environments(documents(values(endpoint=grpc, protocol="grpc", workerEndpoint=URL)))
    worker = found["worker"]
    export = export_of(worker["PROA_WORKER_TRACE_URL"], worker)
    assert export is not None
    assert export.endpoint == URL
    assert "PROA_WORKER_TRACE_URL" not in found["encoder"]


def test_headers_come_from_a_secret() -> None:
    found = documents(values(headers={"existingSecret": "otlp"}))
    for _, pod in pods(found):
        for container in containers(pod):
            if container.get("args", [""])[0] not in SERVICES:
                continue
            (header,) = (e for e in container["env"] if e["name"] == "OTEL_EXPORTER_OTLP_HEADERS")
            assert header["valueFrom"]["secretKeyRef"] == {"name": "otlp", "key": "headers"}


def test_only_what_serves_may_speak_to_the_collector() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}
    found = documents(over(values(), {"networkPolicy": {"collectorTo": [peer]}}))
    policy = one(found, "NetworkPolicy", "demo-proa-tracing")
    (chosen,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert set(chosen["values"]) == {*SERVICES, "parity-worker"}
    names, collector = policy["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert {port["port"] for port in collector["ports"]} == {4318, 4317}
    assert collector["to"] == [peer]
    without = documents(over(values(), {"networkPolicy": {"enabled": False}}))
    assert of_kind(without, "NetworkPolicy") == []


def test_logs_as_json() -> None:
    found = documents(over(profile("default"), {"logFormat": "json"}))
    assert {env["PROA_LOG_FORMAT"] for env in environments(found).values()} == {"json"}


def test_notes_say_where_traces_go() -> None:
    notes = render(values(sample=0.25))["NOTES.txt"]
    assert f"Traces go to {URL}:\n25 % of the requests" in notes
    assert "Traces" not in render(profile("default"))["NOTES.txt"]


@pytest.mark.parametrize(
    ("tracing", "message"),
    [
        ({"endpoint": "otel-collector:4318"}, "/tracing/endpoint"),
        ({"endpoint": "http://me:secret@collector:4318"}, "/tracing/endpoint"),
        ({"protocol": "udp"}, "/tracing/protocol"),
        ({"sample": 1.5}, "/tracing/sample"),
        ({"protocol": "grpc"}, "tracing.workerEndpoint: with protocol grpc"),
    ],
)
def test_bad_values_are_named(tracing: Values, message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values(**tracing))
