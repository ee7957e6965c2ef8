"""Rules, dashboard and scalers use what the code exports; every alert has its runbook section."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from helm.chart import ROOT, over
from helm.release import of_kind, render
from proa.decoder.service import DecoderService
from proa.encoder.service import EncoderService
from proa.frontend.auth import Auth
from proa.frontend.metrics import SECONDS, EngineCollector, FrontendMetrics
from proa.runtime.tls import export_expiry
from proa.store import coordinator
from proa.store.books import Books
from proa.store.metrics import AgentMetrics
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.shell import Shell
from proa.worker.main import CanaryMetrics

RULES = Path(__file__).parent / "rules"
RUNBOOK = ROOT / "docs" / "runbook.md"
NAME = re.compile(r"\b(?:proa|nv)_[a-z0-9_]+\b")
SELECTOR = re.compile(r"\b((?:proa|nv)_[a-z0-9_]+)\{([^}]*)\}")
# What Prometheus adds to every series; the pods' own labels come from the PodMonitor.
SCRAPED = {"namespace", "pod", "app_kubernetes_io_instance"}
# Triton's own, of each worker's metrics port: seen at tritonserver 2.51.
TRITON = {"nv_inference_compute_infer_duration_us", "nv_inference_exec_count"}
KEDA = {"kind": "keda", "prometheusAddress": "http://prometheus:9090"}
SPEC_MODEL = {
    "program": "m.pt2",
    "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
}


STORE = {"store": {"enabled": True, "image": "valkey", "auth": {"existingSecret": "users"}}}


def of_slo(**slo: float) -> dict[str, Any]:
    spec = {"model": SPEC_MODEL, "slo": slo}
    return {"models": [{"name": "digits", "source": {"builtin": "digits"}, "spec": spec}]}


def families() -> Iterator[Any]:
    """Every metric of the services: objects with a name, a type and label names."""
    registry = CollectorRegistry()
    FrontendMetrics(registry)
    registry.register(EngineCollector(dict))
    CanaryMetrics(registry)
    Auth(None, registry)
    export_expiry(registry, {})
    AgentMetrics(registry, cast("Shell", SimpleNamespace(agent=None, starts=0)))
    keeper = SimpleNamespace(map=ClusterMap(0, {}, 0, 0))
    catalogue = SimpleNamespace(tables=())
    books = SimpleNamespace(keeper=keeper, catalogue=catalogue)
    coordinator._export(registry, cast("Books", books))
    EncoderService(None, registry, calls_max=1, deadline_s_max=1.0)  # type: ignore[arg-type]
    DecoderService(registry, calls_max=1)
    collectors: list[Collector] = list(registry._collector_to_names)
    for collector in collectors:
        if isinstance(collector, MetricWrapperBase):
            yield collector, collector._labelnames, next(iter(collector.collect()))
        else:
            yield from ((one, one._labelnames, one) for one in collector.collect())


def exported() -> dict[str, set[str]]:
    """Labels by series name, as Prometheus sees them."""
    found: dict[str, set[str]] = {}
    for _, labels, family in families():
        if family.type == "counter":
            found[f"{family.name}_total"] = set(labels)
        elif family.type == "histogram":
            found |= {f"{family.name}_{end}": set(labels) for end in ("sum", "count")}
            found[f"{family.name}_bucket"] = {*labels, "le"}
        else:
            found[family.name] = set(labels)
    return found


def alerts(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Those of the models and those of the store."""
    rules = of_kind(render(over(STORE, values or {})), "PrometheusRule").values()
    return [one for rule in rules for group in rule["spec"]["groups"] for one in group["rules"]]


def dashboard() -> dict[str, Any]:
    (found,) = (
        one for name, one in of_kind(render(), "ConfigMap").items() if name == "demo-proa-dashboard"
    )
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    return json.loads(found["data"]["proa.json"])  # type: ignore[no-any-return]


def queries() -> dict[str, str]:
    """PromQL by where it stands."""
    found = {f"alert {one['alert']}": one["expr"] for one in alerts()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["query"]["query"]
    for name, one in of_kind(render(scaled(**KEDA)), "ScaledObject").items():
        found[f"keda {name}"] = one["spec"]["triggers"][0]["metadata"]["query"]
    return found


def scaled(**values: Any) -> dict[str, Any]:
    return {"autoscaling": {"workers": {"enabled": True, **values}}}


def test_every_metric_used_is_exported() -> None:
    known = set(exported()) | TRITON
    used = {where: set(NAME.findall(query)) for where, query in queries().items()}
    assert {where: names - known for where, names in used.items() if names - known} == {}
    assert all(used.values())


def test_every_label_used_is_exported() -> None:
    known = exported()
    wrong = [
        (where, name, label)
        for where, query in queries().items()
        for name, matchers in SELECTOR.findall(query)
        for label in re.findall(r"(\w+)(?:=~|!=|!~|=)", matchers)
        if label not in known.get(name, set()) | SCRAPED
    ]
    assert wrong == []


def test_the_hpa_asks_for_a_metric_with_its_labels() -> None:
    (hpa,) = of_kind(render(scaled()), "HorizontalPodAutoscaler").values()
    metric = hpa["spec"]["metrics"][0]["external"]["metric"]
    assert set(metric["selector"]["matchLabels"]) <= exported()[metric["name"]] | SCRAPED


def test_panels_do_not_overlap() -> None:
    seen: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & seen, panel["title"]
        assert max(x for x, _ in cells) < 24
        seen |= cells


def sections() -> dict[str, str]:
    """The runbook's sections by anchor."""
    parts = re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].lower().replace(" ", "-"): part for part in parts}


@pytest.mark.parametrize("name", sorted({one["alert"] for one in alerts()}))
def test_every_alert_has_its_runbook_section(name: str) -> None:
    section = sections()[name.lower()]
    for part in ("**Symptom.**", "**What it means.**", "**Look at.**", "**Do.**"):
        assert part in section


def test_every_alert_leads_to_its_section() -> None:
    values = {"monitoring": {"prometheusRule": {"runbookUrl": "https://docs.example/runbook"}}}
    for one in alerts(values):
        anchor = f"#{one['alert'].lower()}"
        assert one["annotations"]["runbook"] == f"docs/runbook.md{anchor}"
        assert one["annotations"]["runbook_url"] == f"https://docs.example/runbook{anchor}"
    assert set(sections()) == {one["alert"].lower() for one in alerts()}


def test_every_alert_says_whose_it_is() -> None:
    for one in alerts():
        assert {"namespace": "prod", "release": "demo"}.items() <= one["labels"].items()
        assert one["labels"]["severity"] in {"critical", "warning"}
        assert 'namespace="prod",app_kubernetes_io_instance="demo"' in one["expr"]


def test_another_way_of_scraping_has_other_labels() -> None:
    for one in alerts({"monitoring": {"selector": 'job="proa"'}}):
        assert 'job="proa"' in one["expr"]
        assert "app_kubernetes_io_instance" not in one["expr"]


@pytest.mark.parametrize("latency_ms", [0.5, 1, 3, 50, 51, 400, 1000, 7500, 10_000])
def test_the_objective_is_the_next_bound_of_the_histogram(latency_ms: float) -> None:
    bound = min(b for b in SECONDS if b * 1000 >= latency_ms)
    (fast,) = (
        one
        for one in alerts(of_slo(latencyMs=latency_ms))
        if "LatencyBudgetBurnsFast" in one["alert"]
    )
    assert set(re.findall(r'le="([^"]+)"', fast["expr"])) == {str(float(bound))}


def test_beyond_the_histogram_there_is_no_latency_alert() -> None:
    assert not [one for one in alerts(of_slo(latencyMs=20_000)) if "Latency" in one["alert"]]


def test_rates_that_nothing_can_reach_are_left_out() -> None:
    limits = {
        float(limit)
        for one in alerts(of_slo(latencyMs=50, percentile=50))
        if "Latency" in one["alert"]
        for limit in re.findall(r"> ([0-9.e-]+)$", one["expr"], re.MULTILINE)
    }
    assert limits == {0.5}


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_monitors_only_where_the_cluster_knows_them(kind: str) -> None:
    key = kind[0].lower() + kind[1:]
    assert len(of_kind(render(), kind)) == 1
    assert of_kind(render(apis=()), kind) == {}
    assert of_kind(render({"monitoring": {key: {"enabled": False}}}), kind) == {}
    labelled = render({"monitoring": {key: {"labels": {"release": "prometheus"}}}})
    (one,) = of_kind(labelled, kind).values()
    assert one["metadata"]["labels"]["release"] == "prometheus"


def test_the_pod_monitor_reads_every_port_with_metrics() -> None:
    objects = render()
    (monitor,) = of_kind(objects, "PodMonitor").values()
    wanted = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
    ports = {
        port["name"]
        for one in of_kind(objects, "Deployment").values()
        for container in one["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    assert wanted == {"admin", "metrics"}
    assert ports - wanted == {"grpc"}
    labels = monitor["spec"]["podTargetLabels"]
    assert "app.kubernetes.io/instance" in labels


def promtool(folder: Path, *words: str) -> None:
    """Run promtool; skip where there is none."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not on PATH (Debian: package prometheus)")
    done = subprocess.run(
        [tool, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def write_rules(folder: Path, values: dict[str, Any] | None = None) -> None:
    rules = of_kind(render(over(STORE, values or {})), "PrometheusRule").values()
    groups = {"groups": [group for rule in rules for group in rule["spec"]["groups"]]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(groups), encoding="utf-8")


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    write_rules(tmp_path)
    promtool(tmp_path, "check", "rules", "--lint-fatal", "rules.yaml")


def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": "proa:query",
            "labels": {"at": where},
            "expr": query.replace("$__rate_interval", "5m"),
        }
        for where, query in queries().items()
        if not where.startswith("variable")
    ]
    document = {"groups": [{"name": "queries", "rules": rules}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    promtool(tmp_path, "check", "rules", "rules.yaml")


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    write_rules(tmp_path)
    shutil.copy(RULES / "serving.yaml", tmp_path)
    promtool(tmp_path, "test", "rules", "serving.yaml")
