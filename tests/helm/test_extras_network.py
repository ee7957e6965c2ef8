"""The network policies let through exactly the edges of the picture in ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helm.chart import Document
from helm.release import NAME, of_kind, render, selects

WORLD = "anywhere"
CODED = {"k": 2, "r": 1, "pool": "dedicated", "parity": {"2": ["p.pt2"]}}
TENSORS = {
    "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
}
ARCHIVE = {"url": "https://files.example/m.tar", "sha256": "0" * 64}
MODELS = [
    {
        "name": "pinned",
        "source": {"builtin": "digits"},
        "spec": {"model": {"program": "m.pt2", **TENSORS}, "redundancy": CODED},
    },
    {
        "name": "fetched",
        "source": {"http": ARCHIVE},
        "spec": {"model": {"program": "m.pt2", **TENSORS}},
    },
]
# Who may open connections to whom, on which port. Kubelet probes need no rule.
INSIDE = {
    ("frontend", "worker", 8001),
    ("frontend", "parity-worker", 8001),
    ("frontend", "encoder", 8010),
    ("frontend", "decoder", 8011),
    ("encoder", "worker", 8001),
    ("encoder", "parity-worker", 8001),
    ("test", "frontend", 8001),
}
STORE = {
    ("store", "store", 8020),
    ("store", "store", 6379),
    ("store", "coordinator", 8021),
    ("coordinator", "store", 8020),
    ("coordinator", "store", 6379),
}
CHAOS = {
    ("chaos", "frontend", 8001),
    ("chaos", "encoder", 8010),
    ("chaos", "decoder", 8011),
    ("chaos", "worker", 8001),
    ("chaos", "parity-worker", 8001),
}
CHAOS_STORE = {
    ("chaos", "store", 8020),
    ("chaos", "store", 6379),
    ("chaos", "coordinator", 8021),
}


def pods(objects: list[Document]) -> dict[str, dict[str, str]]:
    """Labels of the pods by component, or component/model."""
    found = {}
    for one in objects:
        if one["kind"] not in {"Deployment", "Job", "Pod", "StatefulSet"}:
            continue
        labels = one.get("spec", {}).get("template", one)["metadata"]["labels"]
        model = labels.get("proa.dev/model")
        found["/".join(filter(None, (labels["app.kubernetes.io/component"], model)))] = labels
    return found


def policies_of(objects: list[Document], labels: dict[str, str], kind: str) -> list[Document]:
    return [
        one["spec"]
        for one in of_kind(objects, "NetworkPolicy").values()
        if kind in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], labels)
    ]


def peers(rule: Document, side: str, everybody: dict[str, dict[str, str]]) -> Iterator[Any]:
    """The pods that a rule lets through, or what else it names."""
    if not rule.get(side):
        yield WORLD
    for peer in rule.get(side) or ():
        if set(peer) == {"podSelector"}:
            yield from (
                name for name, labels in everybody.items() if selects(peer["podSelector"], labels)
            )
        else:
            yield str(peer)


def edges(objects: list[Document], kind: str) -> set[tuple[str, str, int]]:
    """(from, to, port) that the Ingress or Egress policies of the pods let through."""
    everybody = pods(objects)
    side = "from" if kind == "Ingress" else "to"
    found = set()
    for name, labels in everybody.items():
        for policy in policies_of(objects, labels, kind):
            for rule in policy.get(kind.lower(), ()):
                for port in rule["ports"]:
                    for peer in peers(rule, side, everybody):
                        ends = (peer, name) if kind == "Ingress" else (name, peer)
                        found.add((*ends, port["port"]))
    return found


def without_models(found: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    return {(a.partition("/")[0], b.partition("/")[0], port) for a, b, port in found}


def wanted_by_all(objects: list[Document]) -> set[tuple[str, str, int]]:
    """Edges that both ends let through."""
    return without_models(edges(objects, "Ingress") & edges(objects, "Egress"))


def test_every_pod_is_denied_what_is_not_allowed() -> None:
    objects = render({"models": MODELS})
    for labels in pods(objects).values():
        assert labels["app.kubernetes.io/instance"] == NAME
        for kind in ("Ingress", "Egress"):
            assert {} in [
                {key: p[key] for key in p if key in {"ingress", "egress"}}
                for p in policies_of(objects, labels, kind)
            ]


def test_the_edges_inside_are_those_of_the_picture() -> None:
    objects = render(
        {"models": MODELS, "networkPolicy": {"clientsFrom": [{"namespaceSelector": {}}]}}
    )
    assert wanted_by_all(objects) == INSIDE


def test_an_edge_that_one_end_allows_the_other_allows_too() -> None:
    objects = render(
        {"models": MODELS, "networkPolicy": {"clientsFrom": [{"namespaceSelector": {}}]}}
    )
    everybody = set(pods(objects))
    for kind in ("Ingress", "Egress"):
        inside = {e for e in edges(objects, kind) if {e[0], e[1]} <= everybody}
        assert without_models(inside) == INSIDE


def test_clients_come_from_the_release_s_namespace_by_default() -> None:
    (policy,) = [
        one["spec"]
        for name, one in of_kind(render(), "NetworkPolicy").items()
        if name.endswith("-frontend")
    ]
    assert policy["ingress"][0] == {
        "ports": [{"port": 8001, "protocol": "TCP"}],
        "from": [{"podSelector": {}}],
    }


def test_metrics_are_for_prometheus_alone() -> None:
    seen = {
        (source, port) for source, _, port in edges(render(), "Ingress") if port in {9090, 8002}
    }
    monitoring = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    }
    assert seen == {(str(monitoring), 9090), (str(monitoring), 8002)}
    nobody = render({"networkPolicy": {"prometheusFrom": []}})
    assert not {port for *_, port in edges(nobody, "Ingress")} & {9090, 8002}


@pytest.mark.parametrize("mode", ["kubernetes", "dns"])
def test_frontends_leave_the_release_for_dns_and_the_api_alone(mode: str) -> None:
    objects = render({"discovery": {"mode": mode}})
    outside = {
        port
        for name, peer, port in edges(objects, "Egress")
        if name == "frontend" and peer == WORLD
    }
    assert outside == ({53, 443, 6443} if mode == "kubernetes" else {53})


def test_workers_leave_the_release_only_to_fetch_their_model() -> None:
    out = edges(render({"models": MODELS}), "Egress")
    assert {(name, port) for name, peer, port in out if peer == WORLD and "worker" in name} == {
        ("worker/fetched", port) for port in (53, 80, 443)
    }


def test_with_tls_workers_reach_the_api_for_the_restart_lease() -> None:
    out = edges(render({"tls": {"enabled": True}}), "Egress")
    assert {(peer, port) for name, peer, port in out if name == "worker/digits"} == {
        (WORLD, 443),
        (WORLD, 6443),
    }


def test_encoders_and_decoders_never_leave_the_release() -> None:
    out = edges(render({"models": MODELS}), "Egress")
    assert {
        peer for name, peer, _ in out if name in {"encoder", "decoder"} and "worker" not in peer
    } == set()


def test_experiments_reach_what_they_break_and_the_api_alone() -> None:
    chaos = {"enabled": True, "experiments": [{"name": "one", "file": "x"}]}
    near = {"networkPolicy": {"clientsFrom": [{"namespaceSelector": {}}]}}
    objects = render({"models": MODELS, "chaos": chaos, **near})
    assert wanted_by_all(objects) == INSIDE | CHAOS
    out = {
        port for name, peer, port in edges(objects, "Egress") if (name, peer) == ("chaos", WORLD)
    }
    assert out == {53, 443, 6443}


def test_without_coder_pods_nothing_is_open_for_them() -> None:
    objects = render({"encoder": {"enabled": False}, "decoder": {"enabled": False}})
    assert wanted_by_all(objects) == {("frontend", "worker", 8001), ("test", "frontend", 8001)}


def test_peers_can_be_narrowed() -> None:
    dns, api = {"ipBlock": {"cidr": "10.0.0.10/32"}}, {"ipBlock": {"cidr": "10.0.0.1/32"}}
    objects = render(
        {"networkPolicy": {"dnsTo": [dns], "apiServerTo": [api], "apiServerPorts": [6443]}}
    )
    out = {(peer, port) for name, peer, port in edges(objects, "Egress") if name == "frontend"}
    assert {(str(dns), 53), (str(api), 6443)} <= out
    assert WORLD not in {peer for peer, _ in out}


def test_switched_off_there_are_none() -> None:
    assert of_kind(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == {}
