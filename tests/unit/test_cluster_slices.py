"""EndpointSlices become endpoints: conditions, families, doubles, limits, any order of events."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.kube_fake import endpoint, endpoint_slice, valid
from proa.cluster import DRAINING, READY, Endpoint
from proa.cluster import slices as slices_module
from proa.cluster.slices import Slices
from proa.errors import BadAnswer

PORT_0 = [{"name": "grpc", "port": 0}]


def listed(*items: dict[str, Any], version: str = "7") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


def event(kind: str, item: dict[str, Any], version: str = "8") -> dict[str, Any]:
    told = copy.deepcopy(item)
    told["metadata"]["resourceVersion"] = version
    return {"type": kind, "object": told}


def endpoints(*items: dict[str, Any]) -> frozenset[Endpoint]:
    found = Slices()
    found.replace(listed(*items))
    return found.picture().endpoints


def test_an_endpoint_has_everything_the_frontend_asks_for() -> None:
    item = valid(endpoint_slice("w-1", endpoint("pod-a", "10.0.0.1", node="n1", ready=True)))
    assert endpoints(item) == {
        Endpoint("pod-a", "10.0.0.1:8001", "n1", "worker", "digits", READY),
    }


def test_a_role_for_every_model_has_none() -> None:
    (found,) = endpoints(endpoint_slice("e-1", endpoint("e", "10.0.0.9"), role="encoder", model=""))
    assert (found.role, found.model) == ("encoder", "")


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ({}, READY),
        ({"ready": None}, READY),
        ({"ready": True, "serving": True, "terminating": False}, READY),
        ({"ready": False}, None),
        ({"ready": False, "serving": False, "terminating": False}, None),
        ({"ready": False, "serving": True, "terminating": True}, DRAINING),
        ({"ready": False, "serving": False, "terminating": True}, None),
        ({"ready": False, "terminating": True}, None),
        # publishNotReadyAddresses reports terminating pods as ready too.
        ({"ready": True, "serving": True, "terminating": True}, DRAINING),
    ],
)
def test_conditions(conditions: dict[str, bool | None], state: str | None) -> None:
    found = endpoints(endpoint_slice("w-1", endpoint("p", "10.0.0.1", **conditions)))
    assert [one.state for one in found] == ([state] if state else [])


def test_ipv6_is_put_in_brackets() -> None:
    (found,) = endpoints(endpoint_slice("w-1", endpoint("p", "fd00:0::1")))
    assert found.address == "[fd00::1]:8001"


def test_a_pod_with_two_families_is_one_endpoint() -> None:
    four = endpoint_slice("w-4", endpoint("p", "10.0.0.1", ready=True))
    six = endpoint_slice("w-6", endpoint("p", "fd00::1", ready=True))
    for order in ((four, six), (six, four)):
        (found,) = endpoints(*order)
        assert found.address == "10.0.0.1:8001"


def test_a_pod_in_two_slices_drains_as_soon_as_one_says_so() -> None:
    old = endpoint_slice("w-1", endpoint("p", "10.0.0.1", ready=True))
    new = endpoint_slice(
        "w-2", endpoint("p", "10.0.0.1", ready=False, serving=True, terminating=True)
    )
    (found,) = endpoints(old, new)
    assert found.state == DRAINING


def test_without_node_and_pod_the_name_is_the_ip_and_the_domain_the_name() -> None:
    item = endpoint_slice("w-1", endpoint("p", "10.0.0.1", node=None))
    del item["endpoints"][0]["targetRef"]
    (found,) = endpoints(item)
    assert (found.name, found.domain) == ("10.0.0.1", "10.0.0.1")


def test_a_slice_without_endpoints_has_null_lists() -> None:
    item = endpoint_slice("w-1") | {"endpoints": None, "ports": None}
    found = Slices()
    found.replace(listed(item))
    assert found.picture().endpoints == frozenset()
    assert found.picture().complaints == ()


def test_what_cannot_be_used_is_said() -> None:
    strange = endpoint_slice("x-1", endpoint("p", "10.0.0.1"), role="cook")
    portless = endpoint_slice("w-1", endpoint("q", "10.0.0.2"))
    portless["ports"] = [{"name": "admin", "port": 9090}]
    found = Slices()
    named = endpoint_slice("h-1", endpoint("r", "10.0.0.3")) | {"addressType": "FQDN"}
    found.replace(listed(strange, portless, named))
    assert found.picture().endpoints == frozenset()
    assert found.picture().complaints == (
        "EndpointSlice h-1 has host names, not addresses",
        "EndpointSlice w-1 has no port named grpc",
        "EndpointSlice x-1: proa.dev/role='cook' is not a role",
    )


def test_the_limit_of_endpoints_is_named() -> None:
    found = Slices()
    pods = [endpoint(f"p{i}", f"10.0.0.{i}") for i in range(4)]
    found.replace(listed(endpoint_slice("w-1", *pods)))
    at, over = found.picture(4), found.picture(3)
    assert (len(at.endpoints), at.complaints) == (4, ())
    assert {one.name for one in over.endpoints} == {"p0", "p1", "p2"}
    assert over.complaints == ("4 endpoints are more than the limit of 3: 1 are left out",)


def test_the_limit_of_slices_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_module, "SLICES_MAX", 2)
    found = Slices()
    found.replace(listed(endpoint_slice("w-1"), endpoint_slice("w-2")))
    found.apply(event("MODIFIED", endpoint_slice("w-2")))
    with pytest.raises(BadAnswer, match="3 EndpointSlices are more than the limit of 2"):
        found.apply(event("ADDED", endpoint_slice("w-3")))


@pytest.mark.parametrize(
    "junk",
    [
        {"type": "ADDED"},
        {"type": "ADDED", "object": 5},
        event("ADDED", endpoint_slice("w") | {"endpoints": 5}),
        event("ADDED", endpoint_slice("w"), version=""),
        {"type": "SURPRISE", "object": {"metadata": {"name": "x", "resourceVersion": "9"}}},
        {"type": "BOOKMARK", "object": {"metadata": {}}},
        {"type": 5, "object": {}},
        event("ADDED", endpoint_slice("w", endpoint("p", "not-an-ip"))),
        event("ADDED", endpoint_slice("w", endpoint("p", "1.1.1.1")) | {"ports": PORT_0}),
    ],
)
def test_junk_is_refused_and_changes_nothing(junk: dict[str, Any]) -> None:
    found = Slices()
    found.replace(listed(endpoint_slice("w-1", endpoint("p", "10.0.0.1"))))
    before = found.picture()
    with pytest.raises(BadAnswer):
        found.apply(junk)
    assert found.picture() == before


def test_a_list_that_is_junk_keeps_what_was() -> None:
    found = Slices()
    found.replace(listed(endpoint_slice("w-1", endpoint("p", "10.0.0.1"))))
    before = found.picture()
    for junk in ({}, {"items": []}, listed({"metadata": {}}), listed() | {"items": 5}):
        with pytest.raises(BadAnswer):
            found.replace(junk)
        assert found.picture() == before


PODS = st.builds(
    endpoint,
    st.sampled_from(["p0", "p1", "p2"]),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]),
    node=st.sampled_from([None, "n1", "n2"]),
    ready=st.sampled_from([None, True, False]),
    serving=st.sampled_from([None, True, False]),
    terminating=st.sampled_from([None, True, False]),
)
SLICES = st.builds(
    lambda name, pods, role: endpoint_slice(name, *pods, role=role),
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(PODS, max_size=3),
    st.sampled_from(["worker", "parity-worker", "frontend", "cook"]),
)
CHANGES = st.lists(st.tuples(st.sampled_from(["PUT", "DELETED", "BOOKMARK"]), SLICES), max_size=20)


@given(st.lists(SLICES, max_size=4, unique_by=lambda s: s["metadata"]["name"]), CHANGES)
def test_any_order_of_events_ends_as_a_list_of_the_last_state(
    first: list[dict[str, Any]], changes: list[tuple[str, dict[str, Any]]]
) -> None:
    """Oracle: the server's own store, listed afresh."""
    store = {item["metadata"]["name"]: item for item in first}
    watched = Slices()
    watched.replace(listed(*first))
    for version, (kind, item) in enumerate(changes, start=8):
        name = item["metadata"]["name"]
        told = kind
        if kind == "PUT":
            told = "MODIFIED" if name in store else "ADDED"
            store[name] = item
        elif kind == "DELETED":
            item = store.pop(name, item)
        assert watched.apply(event(told, item, str(version))) == str(version)
    fresh = Slices()
    fresh.replace(listed(*store.values()))
    assert watched.picture() == fresh.picture()


@given(st.permutations(["a", "b", "c"]), st.lists(PODS, min_size=3, max_size=3))
def test_the_order_of_slices_does_not_matter(order: list[str], pods: list[dict[str, Any]]) -> None:
    items = {name: endpoint_slice(name, pod) for name, pod in zip("abc", pods, strict=True)}
    assert endpoints(*(items[name] for name in order)) == endpoints(*items.values())
