"""What the cluster tests say to kubectl and helm, and what they make of the answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cluster.kube import CommandFailed, Kube, Pod, run
from cluster.settings import Settings, missing

SETTINGS = Settings(registry="registry.example/team", tag="1.2", values=("a.yaml",))


class Script:
    """A shell that answers from a table: last words of the command -> output."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.said: list[list[str]] = []
        self._answers = answers or {}

    async def __call__(self, words: Sequence[str], timeout_s: float) -> str:
        assert timeout_s > 0
        self.said.append(list(words))
        text = " ".join(words)
        return next((str(out) for key, out in self._answers.items() if key in text), "")


def pod(name: str, *, ready: str = "True", component: str = "worker", **meta: str) -> Any:
    labels = {"app.kubernetes.io/component": component}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, **meta},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def pods(*found: Any) -> Script:
    return Script({"get pods": json.dumps({"items": found})})


async def test_an_install_names_registry_tag_and_files() -> None:
    script = Script()
    await Kube(SETTINGS, script).install("helm/proa", "--set", "frontend.replicas=2")
    (words,) = script.said
    assert words[:6] == ["helm", "--namespace", "proa-e2e", "upgrade", "--install", "proa"]
    text = " ".join(words)
    assert "image.registry=registry.example/team" in text
    assert "image.services.tag=1.2" in text
    assert "--values a.yaml" in text
    assert "--wait --timeout 600s" in text
    assert words[-2:] == ["--set", "frontend.replicas=2"]


async def test_pods_are_read_with_their_state() -> None:
    leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    script = pods(pod("a"), pod("b", ready="False", **leaving), pod("t", component="test"))
    assert await Kube(SETTINGS, script).pods("worker") == [
        Pod("a", "uid-a", "worker", ready=True, leaving=False),
        Pod("b", "uid-b", "worker", ready=False, leaving=True),
    ]
    assert "app.kubernetes.io/instance=proa,app.kubernetes.io/component=worker" in (script.said[0])


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        ([], False),
        ([pod("a"), pod("b")], True),
        ([pod("a"), pod("b", ready="False")], False),
        ([pod("a"), pod("b", deletionTimestamp="2026-01-01T00:00:00Z")], False),
    ],
)
async def test_settled_is_all_ready_and_none_leaving(found: list[Any], settled: bool) -> None:
    assert await Kube(SETTINGS, pods(*found)).settled() is settled


async def test_the_address_is_a_node_s() -> None:
    port = {"spec": {"ports": [{"name": "grpc", "nodePort": 30123}]}}
    node = {"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]}}
    answers = {"get service": json.dumps(port), "get nodes": json.dumps({"items": [node]})}
    assert await Kube(SETTINGS, Script(answers)).node_port("f") == "10.0.0.7:30123"


async def test_what_is_left_is_looked_for_among_all_kinds() -> None:
    kinds = (
        "pods\npersistentvolumeclaims\nendpointslices.discovery.k8s.io\nleases.coordination.k8s.io"
    )
    script = Script({"api-resources": kinds, "get leases": "lease/a\n"})
    assert await Kube(SETTINGS, script).left() == ["lease/a"]
    assert "leases.coordination.k8s.io,pods" in script.said[1]


async def test_a_command_that_fails_says_what_it_said() -> None:
    program = "import sys; print('no such pod', file=sys.stderr); sys.exit(3)"
    with pytest.raises(CommandFailed, match="no such pod"):
        await run([sys.executable, "-c", program], 10.0)
    assert (await run([sys.executable, "-c", "print(7)"], 10.0)).strip() == "7"


async def test_a_command_that_hangs_is_killed() -> None:
    program = "import threading; threading.Event().wait()"
    with pytest.raises(TimeoutError):
        await run([sys.executable, "-c", program], 0.2)


def test_what_is_missing_is_named() -> None:
    assert missing({}, lambda _: None) == [
        "set PROA_E2E_REGISTRY to where `make push REGISTRY=...` put the images",
        "set KUBECONFIG",
        "install kubectl",
        "install helm",
    ]
    there = {"PROA_E2E_REGISTRY": "r", "KUBECONFIG": "k"}
    assert missing(there, lambda tool: f"/bin/{tool}") == []


def test_settings_come_from_the_environment() -> None:
    assert Settings.from_env({"PROA_E2E_REGISTRY": "r"}) == Settings(registry="r")
    given = {"PROA_E2E_REGISTRY": "r", "PROA_E2E_VALUES": "a,b", "PROA_E2E_RATE_HZ": "10"}
    assert Settings.from_env(given) == Settings(registry="r", values=("a", "b"), rate_hz=10.0)
