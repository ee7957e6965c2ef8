"""EndpointSlices folded into endpoints: a list and watch events in, the picture out. No I/O.

Objects are discovery.k8s.io/v1 as decoded JSON. What the fold relies on, from that API: a Service
may have several slices; an endpoint may be in two of them while it moves; a dual-stack Service has
a slice per address family; `conditions.ready` absent means ready; `serving` absent means as ready.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proa.cluster.endpoints import DRAINING, READY, Endpoint
from proa.errors import BadAnswer

ROLE_LABEL = "proa.dev/role"
MODEL_LABEL = "proa.dev/model"
PORT_NAME = "grpc"
ROLES = frozenset(("frontend", "encoder", "decoder", "worker", "parity-worker"))
ENDPOINTS_MAX = 4096  # as many workers as a frontend takes
SLICES_MAX = 4096

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """`complaints`: what of the slices could not be used, and why."""

    endpoints: frozenset[Endpoint]
    complaints: tuple[str, ...] = ()


class Slices:
    """The slices as last heard of."""

    def __init__(self) -> None:
        self._slices: dict[str, tuple[tuple[Endpoint, ...], str]] = {}

    def replace(self, listed: Json) -> str:
        """Forget all, take an EndpointSliceList; its resourceVersion, from which to watch.

        Errors: BadAnswer.
        """
        version = _text(_mapping(listed, "metadata"), "resourceVersion")
        if not version:
            raise BadAnswer("an EndpointSliceList has no resourceVersion")
        found = {}
        for item in _sequence(listed, "items"):
            found[_name(item)] = _read(item)
        _check_count(len(found))
        self._slices = found
        return version

    def apply(self, event: Json) -> str:
        """Take one watch event; the resourceVersion to go on from. Errors: BadAnswer."""
        kind, item = _text(event, "type"), _mapping(event, "object")
        version = _text(_mapping(item, "metadata"), "resourceVersion")
        if not version:
            raise BadAnswer(f"a watch event {kind[:40]!r} has no resourceVersion")
        if kind in ("ADDED", "MODIFIED"):
            name, found = _name(item), _read(item)
            _check_count(len(self._slices.keys() | {name}))
            self._slices[name] = found
        elif kind == "DELETED":
            self._slices.pop(_name(item), None)
        elif kind != "BOOKMARK":
            raise BadAnswer(f"a watch event of type {kind[:40]!r}")
        return version

    def picture(self, endpoints_max: int = ENDPOINTS_MAX) -> Picture:
        """Every endpoint once; beyond `endpoints_max` the last by name are left out, and said."""
        pods: dict[tuple[str, str, str], list[Endpoint]] = {}
        for endpoints, _ in self._slices.values():
            for one in endpoints:
                pods.setdefault((one.role, one.model, one.name), []).append(one)
        complaints = sorted({complaint for _, complaint in self._slices.values() if complaint})
        kept = sorted(pods)[:endpoints_max]
        if len(kept) < len(pods):
            complaints.append(
                f"{len(pods)} endpoints are more than the limit of {endpoints_max}:"
                f" {len(pods) - len(kept)} are left out"
            )
        return Picture(frozenset(_merged(pods[key]) for key in kept), tuple(complaints))


def _merged(entries: Sequence[Endpoint]) -> Endpoint:
    """One pod, however often it was seen. Nothing un-terminates, so draining holds; IPv4 goes
    before IPv6; a known node before none."""
    return replace(
        min(entries, key=lambda one: (one.address.startswith("["), one.address)),
        state=DRAINING if any(one.state == DRAINING for one in entries) else READY,
        domain=min(entries, key=lambda one: (one.domain == one.name, one.domain)).domain,
    )


def _read(item: Json) -> tuple[tuple[Endpoint, ...], str]:
    """The usable endpoints of a slice, and what is wrong with it ("" if nothing)."""
    labels = _mapping(_mapping(item, "metadata"), "labels")
    role = _text(labels, ROLE_LABEL)
    if role not in ROLES:
        return (), f"EndpointSlice {_name(item)}: {ROLE_LABEL}={role[:40]!r} is not a role"
    if item.get("addressType") == "FQDN":
        return (), f"EndpointSlice {_name(item)} has host names, not addresses"
    listed = _sequence(item, "endpoints")
    if not listed:  # such a slice may have no ports either
        return (), ""
    port = _port(item)
    if port is None:
        return (), f"EndpointSlice {_name(item)} has no port named {PORT_NAME}"
    found = _endpoints(listed, port, role, _text(labels, MODEL_LABEL))
    return tuple(found), ""


def _endpoints(listed: Sequence[Any], port: int, role: str, model: str) -> Iterator[Endpoint]:
    for one in listed:
        state = _state(_mapping(one, "conditions"))
        # Consumers use the first address only; the API says the others are the same.
        ip = next((a for a in _sequence(one, "addresses") if isinstance(a, str)), "")
        if state is None or not ip:
            continue
        name = _text(_mapping(one, "targetRef"), "name") or ip
        domain = _text(one, "nodeName") or name
        yield Endpoint(name, join_host_port(ip, port), domain, role, model, state)


def _state(conditions: Json) -> str | None:
    ready = conditions.get("ready")
    if conditions.get("terminating"):
        serving = conditions.get("serving")
        return DRAINING if (ready if serving is None else serving) else None
    return READY if ready is None or ready else None


def _port(item: Json) -> int | None:
    for port in _sequence(item, "ports"):
        number = port.get("port") if isinstance(port, Mapping) else None
        if number is not None and port.get("name") == PORT_NAME:
            if isinstance(number, int) and 1 <= number <= 65535:
                return number
            raise BadAnswer(f"EndpointSlice {_name(item)}: port {str(number)[:20]!r}")
    return None


def join_host_port(ip: str, port: int) -> str:
    """`ip:port`, `[ip]:port` for IPv6. Errors: BadAnswer where `ip` is not an address."""
    try:
        parsed = ipaddress.ip_address(ip)
    except ValueError as exc:
        raise BadAnswer(f"endpoint address {ip[:80]!r} is not an IP address") from exc
    return f"[{parsed}]:{port}" if parsed.version == 6 else f"{parsed}:{port}"


def _check_count(count: int) -> None:
    if count > SLICES_MAX:
        raise BadAnswer(f"{count} EndpointSlices are more than the limit of {SLICES_MAX}")


def _name(item: Any) -> str:
    name = _text(_mapping(item, "metadata"), "name")
    if not name:
        raise BadAnswer("an EndpointSlice has no name")
    return name


def _mapping(item: Any, key: str) -> Json:
    found = item.get(key) if isinstance(item, Mapping) else item
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise BadAnswer(f"{key} of an EndpointSlice is not an object")
    return found


def _sequence(item: Any, key: str) -> Sequence[Any]:
    found = item.get(key) if isinstance(item, Mapping) else item
    if found is None:
        return ()
    if not isinstance(found, list):
        raise BadAnswer(f"{key} of an EndpointSlice is not a list")
    return found


def _text(item: Json, key: str) -> str:
    found = item.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise BadAnswer(f"{key} of an EndpointSlice is not a text")
    return found
