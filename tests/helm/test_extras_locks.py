"""Certificates: who gets which names, who signs them, and what is refused."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from helm.chart import Document
from helm.release import of_kind, render
from proa.cluster.settings import SmokeSettings
from proa.runtime.settings import settings_of

ON: dict[str, Any] = {"tls": {"enabled": True}}
ROLES = ("frontend", "encoder", "decoder", "worker", "client")
CERT_MANAGER = ("cert-manager.io/v1",)


def leaves(objects: list[Document]) -> dict[str, Document]:
    """The certificates of the roles by secret."""
    found = of_kind(objects, "Certificate").values()
    return {one["spec"]["secretName"]: one["spec"] for one in found if not one["spec"].get("isCA")}


def test_every_role_has_its_name_and_no_other() -> None:
    found = leaves(render(ON))
    assert set(found) == {f"demo-proa-tls-{role}" for role in ROLES}
    for role in ROLES[:4]:
        assert found[f"demo-proa-tls-{role}"]["dnsNames"] == [f"proa-{role}"]


def test_the_client_certificate_has_the_names_that_clients_use() -> None:
    values = {"tls": {"enabled": True, "clientDnsNames": ["proa.example.org"]}}
    assert leaves(render(values))["demo-proa-tls-client"]["dnsNames"] == [
        "demo-proa-frontend",
        "demo-proa-frontend.prod",
        "demo-proa-frontend.prod.svc",
        "demo-proa-frontend.prod.svc.cluster.local",
        "proa.example.org",
    ]


def test_every_certificate_serves_and_asks() -> None:
    for spec in leaves(render(ON)).values():
        assert {"server auth", "client auth"} <= set(spec["usages"])
        assert spec["privateKey"]["rotationPolicy"] == "Always"


@pytest.mark.parametrize("name", ["demo-proa-ca", "demo-proa-clients-ca"])
def test_without_an_issuer_the_chart_makes_cas(name: str) -> None:
    objects = render(ON)
    ca = of_kind(objects, "Certificate")[name]["spec"]
    issuers = of_kind(objects, "Issuer")
    assert ca["isCA"]
    assert issuers[ca["issuerRef"]["name"]]["spec"] == {"selfSigned": {}}
    assert issuers[name]["spec"]["ca"]["secretName"] == ca["secretName"]


def test_who_is_let_in_at_the_front_door_does_not_pass_at_a_worker() -> None:
    signers = {name: spec["issuerRef"]["name"] for name, spec in leaves(render(ON)).items()}
    assert signers.pop("demo-proa-tls-client") == "demo-proa-clients-ca"
    assert set(signers.values()) == {"demo-proa-ca"}


def test_a_ca_that_signs_nothing_is_not_made() -> None:
    inside = {role: f"my-{role}" for role in ROLES[:4]}
    objects = render({"tls": {"enabled": True, "existingSecrets": inside}})
    assert set(of_kind(objects, "Issuer")) == {
        "demo-proa-selfsigned",
        "demo-proa-clients-ca",
    }


def test_a_given_issuer_signs_all() -> None:
    issuer = {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    objects = render({"tls": {"enabled": True, "certManager": {"issuerRef": issuer}}})
    assert of_kind(objects, "Issuer") == {}
    assert [spec["issuerRef"] for spec in leaves(objects).values()] == [issuer] * 5


def test_given_secrets_are_used_and_not_issued() -> None:
    given = {role: f"my-{role}" for role in ROLES}
    objects = render({"tls": {"enabled": True, "existingSecrets": given}}, apis=())
    assert of_kind(objects, "Certificate") == of_kind(objects, "Issuer") == {}
    mounted = {
        volume["secret"]["secretName"]
        for one in of_kind(objects, "Deployment").values()
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == set(given.values())


def test_some_secrets_given_the_others_are_issued() -> None:
    values = {"tls": {"enabled": True, "existingSecrets": {"client": "public"}}}
    assert "public" not in leaves(render(values))
    assert len(leaves(render(values))) == 4


def test_every_mounted_secret_is_issued() -> None:
    objects = render({"tls": {"enabled": True, "clientAuth": True}})
    pods = [one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment").values()]
    pods += [one["spec"] for one in of_kind(objects, "Pod").values()]
    mounted = {v["secret"]["secretName"] for pod in pods for v in pod["volumes"] if "secret" in v}
    assert mounted == set(leaves(objects))


@pytest.mark.parametrize(
    ("values", "apis", "message"),
    [
        (ON, (), "the cluster has no API cert-manager.io/v1"),
        (
            {"tls": {"enabled": True, "certManager": {"enabled": False}}},
            CERT_MANAGER,
            "no secret is named for frontend encoder decoder worker client",
        ),
        ({"tls": {"clientAuth": True}}, CERT_MANAGER, "tls.clientAuth"),
        ({"tls": {"enabled": True, "duration": "1h"}}, CERT_MANAGER, "duration"),
        ({"tls": {"enabled": True, "clientDnsNames": ["Not a name"]}}, CERT_MANAGER, "pattern"),
    ],
)
def test_what_cannot_work_is_refused(
    values: dict[str, Any], apis: tuple[str, ...], message: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values, apis=apis)


def test_without_tls_there_is_nothing_of_it() -> None:
    objects = render()
    assert of_kind(objects, "Certificate") == of_kind(objects, "Issuer") == {}
    assert "TLS" not in str(objects)


def pod_of_test(values: dict[str, Any], name: str) -> Document:
    found: Document = of_kind(render(values), "Pod")[f"demo-proa-test-{name}"]["spec"]
    return found


def environment(pod: Document) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"]}


def test_helm_tests_ask_as_a_client_does() -> None:
    values = {
        "tls": {"enabled": True, "clientAuth": True},
        "auth": {"tokens": {"existingSecret": "tokens"}},
        "tests": {"token": {"existingSecret": "token", "key": "mine"}},
    }
    pod = pod_of_test(values, "oip-smoke")
    seen = environment(pod)
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    files = {name: value for name, value in seen.items() if value.startswith("/")}
    assert set(files) == {
        f"PROA_SMOKE_{name}" for name in ("SPECS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TOKEN_FILE")
    }
    assert all(value in mounts or value.rpartition("/")[0] in mounts for value in files.values())
    assert set(seen) <= {one.env for one in settings_of(SmokeSettings).values()}
    assert seen["PROA_SMOKE_ADDRESS"] == "demo-proa-frontend.prod.svc:8001"
    names = leaves(render(values))["demo-proa-tls-client"]["dnsNames"]
    assert seen["PROA_SMOKE_ADDRESS"].partition(":")[0] in names


def test_one_helm_test_reconstructs_where_something_is_coded() -> None:
    assert environment(pod_of_test({}, "reconstruct"))["PROA_SMOKE_RECONSTRUCT"] == "true"
    plain = render()
    names = of_kind(plain, "Pod")
    assert set(names) == {"demo-proa-test-oip-smoke", "demo-proa-test-reconstruct"}
    for one in names.values():
        assert one["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert one["spec"]["automountServiceAccountToken"] is False


def test_without_a_token_for_them_there_are_no_helm_tests() -> None:
    locked = {"auth": {"tokens": {"existingSecret": "tokens"}}}
    assert of_kind(render(locked), "Pod") == {}
    assert of_kind(render({"tests": {"enabled": False}}), "Pod") == {}
