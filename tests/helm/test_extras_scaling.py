"""Autoscalers and disruption budgets fit the pools that they are for."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from helm.chart import Document
from helm.release import of_kind, render, selects

MODEL = "demo-proa-worker-digits"
SPEC = {
    "model": {
        "program": "m.pt2",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
    },
    "redundancy": {"k": 2, "r": 2, "pool": "dedicated", "parity": {"2": ["p.pt2", "q.pt2"]}},
}
DEDICATED = {"models": [{"name": "digits", "source": {"builtin": "digits"}, "spec": SPEC}]}


def scaled(**values: Any) -> dict[str, Any]:
    return {"autoscaling": {"workers": {"enabled": True, **values}}}


def deployment(objects: list[Document], name: str = MODEL) -> Document:
    found: Document = of_kind(objects, "Deployment")[name]["spec"]
    return found


def test_without_autoscaling_the_deployment_has_its_replicas() -> None:
    objects = render()
    assert of_kind(objects, "HorizontalPodAutoscaler") == of_kind(objects, "ScaledObject") == {}
    assert deployment(objects)["replicas"] == 4


def test_the_hpa_follows_the_queue_of_its_model() -> None:
    objects = render(scaled(minReplicas=3, maxReplicas=9, queueDepthTarget=5))
    spec = of_kind(objects, "HorizontalPodAutoscaler")[MODEL]["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": MODEL}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 9)
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"] == {
        "name": "proa_queue_depth",
        "selector": {
            "matchLabels": {
                "app_kubernetes_io_instance": "demo",
                "namespace": "prod",
                "model": "digits",
            }
        },
    }
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "5"}
    assert "replicas" not in deployment(objects)


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_at_most_one_worker_a_minute_goes(kind: str) -> None:
    values = scaled(
        kind=kind, prometheusAddress="http://prometheus:9090", scaleDownStabilizationSeconds=120
    )
    objects = render(values)
    if kind == "hpa":
        behavior = of_kind(objects, "HorizontalPodAutoscaler")[MODEL]["spec"]["behavior"]
    else:
        advanced = of_kind(objects, "ScaledObject")[MODEL]["spec"]["advanced"]
        behavior = advanced["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"] == {
        "stabilizationWindowSeconds": 120,
        "selectPolicy": "Min",
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    }


@pytest.mark.parametrize(("given", "fallback"), [(None, 8), (5, 5)])
def test_keda_asks_prometheus_and_falls_back(given: int | None, fallback: int) -> None:
    values = scaled(kind="keda", prometheusAddress="http://prometheus:9090", fallbackReplicas=given)
    objects = render(values)
    assert of_kind(objects, "HorizontalPodAutoscaler") == {}
    spec = of_kind(objects, "ScaledObject")[MODEL]["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus:9090",
        "query": "sum(proa_queue_depth"
        '{namespace="prod",app_kubernetes_io_instance="demo",model="digits"})',
        "threshold": "2",
    }
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": fallback}
    assert "replicas" not in deployment(objects)


def test_parity_workers_keep_their_number() -> None:
    objects = render({**DEDICATED, **scaled()})
    assert set(of_kind(objects, "HorizontalPodAutoscaler")) == {MODEL}
    assert deployment(objects, "demo-proa-parity-worker-digits")["replicas"] == 4


@pytest.mark.parametrize(
    ("values", "apis", "message"),
    [
        (scaled(kind="keda", prometheusAddress="http://p"), (), "no API keda.sh/v1alpha1"),
        (scaled(kind="keda"), ("keda.sh/v1alpha1",), "prometheusAddress"),
        (scaled(minReplicas=9), (), "minReplicas: 9 is above maxReplicas, 8"),
        (scaled(kind="cron"), (), "kind"),
        (scaled(queueDepthTarget=0), (), "queueDepthTarget"),
    ],
)
def test_what_cannot_work_is_refused(
    values: dict[str, Any], apis: tuple[str, ...], message: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values, apis=apis)


def budgets(objects: list[Document]) -> dict[str, int]:
    """maxUnavailable by the Deployment whose pods it is for; each budget is for one alone."""
    found = {}
    deployments = of_kind(objects, "Deployment") | of_kind(objects, "StatefulSet")
    for one in of_kind(objects, "PodDisruptionBudget").values():
        spec = one["spec"]
        (name,) = (
            name
            for name, found_one in deployments.items()
            if selects(spec["selector"], found_one["spec"]["template"]["metadata"]["labels"])
        )
        found[name] = spec["maxUnavailable"]
    return found


def test_at_most_r_workers_are_evicted_at_once() -> None:
    assert budgets(render()) == {MODEL: 1}
    assert budgets(render(DEDICATED)) == {MODEL: 2, "demo-proa-parity-worker-digits": 2}


def test_of_everything_that_there_is_more_of_at_most_one_is_evicted() -> None:
    values = {name: {"replicas": 3} for name in ("frontend", "encoder", "decoder")}
    assert budgets(render(values)) == {
        MODEL: 1,
        **{f"demo-proa-{name}": 1 for name in values},
    }
    values["encoder"]["enabled"] = False  # type: ignore[assignment]
    assert "demo-proa-encoder" not in budgets(render(values))


def test_budgets_can_be_switched_off() -> None:
    assert budgets(render({"podDisruptionBudget": {"enabled": False}})) == {}
