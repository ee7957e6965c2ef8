"""Chaos Mesh in the fake API server: what its CRDs take (chaos-mesh.org/v1alpha1, of v2.8), and a
controller that injects at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    from fakes.kube_fake import FakeKube

KINDS = {"networkchaos": "NetworkChaos", "podchaos": "PodChaos", "stresschaos": "StressChaos"}
PATH = "/apis/chaos-mesh.org/v1alpha1"

Object = dict[str, Any]
TEXT: Object = {"type": "string"}
# What Go takes: a sequence of numbers with units.
DURATION: Object = {"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ns|us|ms|s|m|h))+$"}
MODES = ["one", "all", "fixed", "fixed-percent", "random-max-percent"]


def _closed(required: tuple[str, ...] = (), **properties: Object) -> Object:
    """The API server drops unknown keys in silence: here they are errors."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


SELECTOR = _closed(
    namespaces={"type": "array", "items": TEXT},
    pods={"type": "object", "additionalProperties": {"type": "array", "items": TEXT}},
    labelSelectors={"type": "object", "additionalProperties": TEXT},
    nodes={"type": "array", "items": TEXT},
)
WHO = {"mode": {"enum": MODES}, "selector": SELECTOR, "value": TEXT, "duration": DURATION}
_DELAY = _closed(("latency",), latency=DURATION, jitter=DURATION, correlation=TEXT)
_CPU = _closed(("workers",), workers={"type": "integer"}, load={"type": "integer"})
SPECS = {
    "NetworkChaos": _closed(
        ("action", "mode", "selector"),
        **WHO,
        action={"enum": ["netem", "delay", "loss", "duplicate", "corrupt", "partition"]},
        direction={"enum": ["to", "from", "both"]},
        delay=_DELAY,
        target=_closed(("mode", "selector"), mode={"enum": MODES}, selector=SELECTOR),
    ),
    "PodChaos": _closed(
        ("action", "mode", "selector"),
        **WHO,
        action={"enum": ["pod-kill", "pod-failure", "container-kill"]},
        gracePeriod={"type": "integer", "minimum": 0},
    ),
    "StressChaos": _closed(("mode", "selector"), **WHO, stressors=_closed(cpu=_CPU)),
}
SCHEMAS = {
    kind: _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "chaos-mesh.org/v1alpha1"},
        kind={"const": kind},
        metadata={"type": "object", "required": ["name"]},
        spec=spec,
        status={"type": "object"},
    )
    for kind, spec in SPECS.items()
}


def valid(item: Object) -> Object:
    """`item`, which Chaos Mesh would take."""
    jsonschema.validate(item, SCHEMAS[item["kind"]])
    return item


def install(kube: FakeKube, *, injects: bool = True) -> list[Object]:
    """From now on Chaos Mesh is there. What was created, in that order."""
    created: list[Object] = []
    resources = [{"name": name, "namespaced": True, "kind": kind} for name, kind in KINDS.items()]
    kube.discovery[PATH] = {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "chaos-mesh.org/v1alpha1",
        "resources": resources,
    }

    def control(item: Object) -> None:
        if item["kind"] in SCHEMAS:
            created.append(item)
            status = {"conditions": [{"type": "AllInjected", "status": str(injects)}]}
            kube.put({**item, "status": status})

    kube.on_create = control
    return created
