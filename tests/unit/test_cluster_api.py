"""Access to the Kubernetes API is found, or what is missing is named; waits grow to a limit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from proa.cluster.api import load_api
from proa.cluster.connection import Call, explain
from proa.cluster.retry import RETRY_AFTER_S_MAX, Retry
from proa.errors import EnvironmentLacks

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: secret}}]
"""


def account(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_pod_needs_nothing_else(tmp_path: Path) -> None:
    found = load_api(IN_POD, account(tmp_path, token="t", ca_crt="c", namespace="models\n"))
    assert found.namespace == "models"


async def test_the_token_is_read_again_each_time(tmp_path: Path) -> None:
    folder = account(tmp_path, token="old", ca_crt="c", namespace="models")
    environ = IN_POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    configuration = await load_api(environ, folder).configure()
    assert configuration.host == "https://[fd00::1]:443"
    account(tmp_path, token="new\n")
    headers = await configuration.auth_settings()
    assert headers["BearerToken"]["value"] == "Bearer new"


@pytest.mark.parametrize(
    ("environ", "files", "missing"),
    [
        ({}, {}, "KUBERNETES_SERVICE_HOST is not set .* KUBECONFIG is not set"),
        ({"KUBERNETES_SERVICE_HOST": "h"}, {}, "KUBERNETES_SERVICE_PORT is not set"),
        (IN_POD, {"ca_crt": "c", "namespace": "n"}, "token: No such file.*automount"),
        (IN_POD, {"token": "t", "namespace": "n"}, r"ca\.crt: No such file"),
        (IN_POD, {"token": "t", "ca_crt": "c"}, "namespace: No such file"),
        (IN_POD, {"token": " \n", "ca_crt": "c", "namespace": "n"}, "token is empty"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, environ: dict[str, str], files: dict[str, str], missing: str
) -> None:
    with pytest.raises(EnvironmentLacks, match=missing):
        load_api(environ, account(tmp_path, **files))


async def test_a_kubeconfig_goes_before_the_pod(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG, encoding="utf-8")
    found = load_api(IN_POD | {"KUBECONFIG": str(path)})
    assert found.namespace == "default"
    assert (await found.configure()).host == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("current-context: [", "is not YAML"),
        ("", ""),
        ("[]", ""),
        ("current-context: x\ncontexts: []\nclusters: []", "Expected object with name x"),
        (KUBECONFIG.replace("name: k,", "name: j,"), "Expected object with name k"),
    ],
)
def test_a_bad_kubeconfig_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EnvironmentLacks, match=f"KUBECONFIG=.*config.*{reason}"):
        load_api({"KUBECONFIG": str(path)})
    with pytest.raises(EnvironmentLacks, match="no such file"):
        load_api({"KUBECONFIG": str(tmp_path / "none")})


def test_a_refusal_names_what_to_grant() -> None:
    call = Call("watch", "discovery.k8s.io", "endpointslices", "models")
    said = 'x is forbidden: User "system:serviceaccount:models:f" cannot watch resource'
    assert explain(call, 403, said, server="https://h", who="the service account") == (
        "system:serviceaccount:models:f may not watch endpointslices (API group discovery.k8s.io)"
        " in namespace models: a Role must grant it (the API server https://h says 403)"
    )
    unknown = explain(call, 403, "no", server="https://h", who="the service account in /x")
    assert unknown.startswith("the service account in /x may not watch endpointslices")


def test_waits_double_up_to_the_limit() -> None:
    retry = Retry(first_s=0.2, most_s=30.0, dice=random.Random(1))
    waits = [retry.next_s() for _ in range(40)]
    for tries, wait in enumerate(waits):
        full = min(30.0, 0.2 * 2**tries)
        assert full / 2 <= wait <= full
    retry.reset()
    assert retry.next_s() <= 0.2


def test_a_server_may_ask_for_longer_but_not_for_ever() -> None:
    assert Retry().next_s(7.0) == 7.0
    assert Retry().next_s(1e6) == RETRY_AFTER_S_MAX
