"""What a frontend makes of a picture of its surroundings; no network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proa import spec as specs
from proa.cluster.endpoints import DRAINING, READY, Endpoint
from proa.dispatch.events import DEPLOYED, PARITY
from proa.errors import SettingsError
from proa.frontend.addresses import WorkerAddress
from proa.frontend.discovery import Complaints, dns_names, make_source
from proa.frontend.membership import View, view_of
from proa.frontend.settings import FrontendSettings
from proa.runtime.settings import from_env

SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {{name: {name}}}
spec:
  model:
    {model}
    inputs: [{{name: x, dtype: FP32, shape: [2]}}]
    outputs: [{{name: y, dtype: FP32, shape: [2]}}]
  redundancy: {{policy: none, pool: {pool}, parity: {parity}}}
"""


def spec(folder, name="digits", model="program: digits.pt2", pool="shared", parity="{}"):
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(name=name, model=model, pool=pool, parity=parity), encoding="utf-8")
    return specs.load(path)


def pod(name, role="worker", model="digits", state=READY, address=None):
    return Endpoint(name, address or f"{name}:8001", f"node-{name}", role, model, state)


def names(found):
    return {w.name: set(w.roles) for w in found}


@pytest.mark.parametrize(
    ("pool", "worker", "parity"),
    [("shared", {DEPLOYED, PARITY}, {PARITY}), ("dedicated", {DEPLOYED}, {PARITY})],
)
def test_roles_follow_label_and_pool(tmp_path, pool, worker, parity):
    view = view_of(frozenset({pod("a"), pod("b", "parity-worker"), pod("c", model="other")}), None)
    assert names(view.workers_of(spec(tmp_path, pool=pool))) == {"a": worker, "b": parity}


def test_a_worker_is_its_pod_on_its_node(tmp_path):
    (found,) = view_of(frozenset({pod("a")}), None, "node").workers_of(spec(tmp_path))
    assert found == WorkerAddress("a", "a:8001", "node-a", frozenset((DEPLOYED, PARITY)))


@pytest.mark.parametrize(
    ("nodes", "domain", "expected"),
    [
        (["n1"] * 4, "auto", {"a", "b", "c", "d"}),
        (["n1", "n1", "n2", "n2"], "auto", {"a", "b", "c", "d"}),
        (["n1", "n2", "n3", "n3"], "auto", {"n1", "n2", "n3"}),
        (["n1", "n2", "n3", "n3"], "pod", {"a", "b", "c", "d"}),
        (["n1"] * 4, "node", {"n1"}),
    ],
)
def test_pods_are_domains_where_nodes_are_too_few_for_a_group(tmp_path, nodes, domain, expected):
    pods = {replace(pod(n), domain=node) for n, node in zip("abcd", nodes, strict=True)}
    view = view_of(frozenset(pods), None, domain)
    found = view.workers_of(spec(tmp_path, parity='{"2": [p.pt2]}'))
    assert {w.domain for w in found} == expected


def test_without_parity_two_nodes_are_enough(tmp_path):
    pods = {replace(pod(n), domain=node) for n, node in zip("abc", "112", strict=True)}
    found = view_of(frozenset(pods), None).workers_of(spec(tmp_path))
    assert {w.domain for w in found} == {"1", "2"}


def test_who_is_about_to_leave_gets_no_work(tmp_path):
    view = view_of(
        frozenset(
            {pod("a"), pod("b", state=DRAINING), pod("e", "encoder", "", DRAINING)}
            | {pod("d", "decoder", "")}
        ),
        None,
    )
    assert names(view.workers_of(spec(tmp_path))).keys() == {"a"}
    assert view.encoders == ()
    assert view.decoders == ("d:8001",)


def test_a_pod_with_two_addresses_is_one_worker(tmp_path):
    view = view_of(
        frozenset({pod("a", address="10.0.0.1:8001"), pod("a", address="[::1]:8001")}), None
    )
    (found,) = view.workers_of(spec(tmp_path))
    assert found.address == "10.0.0.1:8001"


def test_a_pod_that_is_replaced_under_its_name_is_the_ready_one(tmp_path):
    old, new = pod("a", state=DRAINING), pod("a", address="10.0.0.2:8001")
    (found,) = view_of(frozenset({old, new}), None).workers_of(spec(tmp_path))
    assert found.address == "10.0.0.2:8001"


def test_an_endpoint_model_has_its_own_address_everywhere(tmp_path):
    found = spec(tmp_path, model="endpoint: gpu-box:8001/resnet")
    for view in (View(), view_of(frozenset({pod("a")}), None)):
        (worker,) = view.workers_of(found)
        assert worker.address == "gpu-box:8001"
        assert worker.roles == {DEPLOYED}


@pytest.mark.parametrize(("me", "index"), [("f0", 0), ("f1", 1), ("f2", 2)])
def test_frontends_count_in_the_order_of_their_names(me, index):
    found = frozenset(pod(name, "frontend", "") for name in ("f2", "f0", "f1"))
    view = view_of(found, me)
    assert (view.frontends, view.index) == (3, index)


def test_a_frontend_counts_while_it_drains_and_itself_when_nobody_is_listed():
    leaving = frozenset({pod("f0", "frontend", "", DRAINING), pod("f1", "frontend", "")})
    assert view_of(leaving, "f1").frontends == 2
    assert (view_of(frozenset(), "f1").frontends, view_of(frozenset(), "f1").index) == (1, 0)
    assert 0 <= view_of(leaving, "not-listed-yet").index < 2


def test_an_error_of_discovery_is_counted_always_and_logged_once(caplog):
    count = []
    complain = Complaints(lambda: count.append(1))
    for text in ("refused", "refused", "forbidden"):
        complain(text)
    complain.over()
    complain("forbidden")
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert errors == ["discovery: refused", "discovery: forbidden", "discovery: forbidden"]
    assert len(count) == 4


def test_the_names_to_ask_dns_for(tmp_path):
    models = {
        "digits": spec(tmp_path),
        "big": spec(tmp_path, "big", pool="dedicated"),
        "far": spec(tmp_path, "far", model="endpoint: gpu-box:8001/resnet"),
    }
    found = dns_names("r", ".ns.svc.cluster.local", models)
    assert {(n.host.partition(".")[0], n.port, *role) for n, role in found.items()} == {
        ("r-frontend-peers", 8001, "frontend", ""),
        ("r-encoder", 8010, "encoder", ""),
        ("r-decoder", 8011, "decoder", ""),
        ("r-worker-digits", 8001, "worker", "digits"),
        ("r-worker-big", 8001, "worker", "big"),
        ("r-parity-worker-big", 8001, "parity-worker", "big"),
    }
    assert all(n.host.endswith(".ns.svc.cluster.local.") for n in found)
    assert any(n.host == "r-encoder" for n in dns_names("r", "", {}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DISCOVERY": "kubernetes"}, "PROA_FRONTEND_INSTANCE is not set"),
        ({"DISCOVERY": "dns"}, "PROA_FRONTEND_DNS_PREFIX is not set"),
        (
            {"DISCOVERY": "dns", "ENCODERS": "a:1"},
            "PROA_FRONTEND_ENCODERS is for .*static, not dns",
        ),
    ],
)
def test_settings_of_discovery_that_do_not_fit(changes, words):
    environ = {f"PROA_FRONTEND_{name}": value for name, value in {"SPECS": "x", **changes}.items()}
    settings = from_env(FrontendSettings, environ)
    with pytest.raises(SettingsError, match=words):
        make_source(settings, dict, lambda _text: None)
