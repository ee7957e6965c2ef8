"""Renders of the chart, and the checks that all of them must pass."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import helm_python
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "proa"
PROFILES = ("default", *sorted(p.stem for p in (ROOT / "helm" / "profiles").glob("*.yaml")))
# What a render needs that no profile can know.
SITE: dict[str, Any] = {"image": {"registry": "registry.example/team"}}
APIS = (
    "cert-manager.io/v1",
    "keda.sh/v1alpha1",
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
)
VERSIONS = ("1.29", "1.36")
# Kinds of other projects: kubernetes-validate has no schemas of them.
FOREIGN = {"Certificate", "Issuer", "PodMonitor", "PrometheusRule", "ScaledObject"}

Values = dict[str, Any]
Document = dict[str, Any]


def over(base: Values, top: Values) -> Values:
    """`base` with the values of `top` over it, as Helm lays values over each other."""
    found = deepcopy(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = over(found[key], value)
        else:
            found[key] = deepcopy(value)
    return found


def profile(name: str) -> Values:
    """The values of a profile with what a render needs; every optional API is there."""
    file = ROOT / "helm" / "profiles" / f"{name}.yaml"
    own = {} if name == "default" else yaml.safe_load(file.read_text(encoding="utf-8"))
    return over({**SITE, "apiVersions": list(APIS)}, own)


@lru_cache(maxsize=1)
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Values, *, name: str = "demo", namespace: str = "prod") -> dict[str, str]:
    """Text of each template by its file name, empty ones left out."""
    found = chart().render(values, name=name, namespace=namespace)
    texts = {path.rpartition("/templates/")[2]: text for path, text in found.items()}
    return {path: text for path, text in sorted(texts.items()) if text.strip()}


def documents(values: Values, **release: str) -> list[Document]:
    """Every object of a render."""
    texts = render(values, **release)
    return [d for path in texts if path.endswith(".yaml") for d in parsed(texts[path])]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Document, ...]:
    return tuple(d for d in yaml.load_all(text, Loader=yaml.CSafeLoader) if d)


def parsed(text: str) -> list[Document]:
    return deepcopy(list(_parsed(text)))


def one(found: Iterable[Document], kind: str, name: str) -> Document:
    (match,) = (d for d in found if d["kind"] == kind and d["metadata"]["name"] == name)
    return match


def of_kind(found: Iterable[Document], kind: str) -> list[Document]:
    return [d for d in found if d["kind"] == kind]


def pods(found: Iterable[Document]) -> list[tuple[str, Document]]:
    """(name, pod spec) of everything that makes pods."""
    specs = []
    for document in found:
        if document["kind"] == "Pod":
            specs.append((document["metadata"]["name"], document["spec"]))
        elif document["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet"}:
            specs.append((document["metadata"]["name"], document["spec"]["template"]["spec"]))
    return specs


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: Document) -> dict[str, str]:
    """Variables of a container; a value from elsewhere is the empty text."""
    return {entry["name"]: str(entry.get("value", "")) for entry in container.get("env", [])}


def problems(document: Document) -> list[str]:
    """What strict validation for the oldest and the newest Kubernetes finds, each text once."""
    if document["kind"] in FOREIGN:
        return []
    return list(_problems(json.dumps(document, sort_keys=True)))


@lru_cache(maxsize=4096)
def judged(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, problems) of the objects in a rendered template. The same text is read once."""
    found = _parsed(text)
    names = (f"{d['apiVersion']} {d['kind']} {d['metadata']['name']}" for d in found)
    return tuple(names), tuple(problem for d in found for problem in problems(d))


@lru_cache(maxsize=4096)
def _problems(text: str) -> tuple[str, ...]:
    document = json.loads(text)
    where = f"{document['kind']}/{document['metadata']['name']}"
    return tuple(
        f"{version} {where} {'.'.join(map(str, error.path))}: {error.message}"
        for version in VERSIONS
        for error in _validator(document["kind"], document["apiVersion"], version).iter_errors(
            document
        )
    )


@lru_cache(maxsize=256)
def _validator(kind: str, api: str, version: str) -> Draft202012Validator:
    """What kubernetes_validate.validate() makes anew for each document, from the same schemas."""
    folder = f"kubernetes-json-schema/v{_schema_version(version)}-local-strict"
    group, _, rest = api.rpartition("/")
    prefix = f"{group.split('.')[0]}-" if group else ""
    schema = utils.schema_contents(f"{folder}/{kind.lower()}-{prefix}{rest}.json", version)
    registry = Resource.from_contents(_definitions(version)) @ Registry()
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ registry)


@lru_cache(maxsize=8)
def _definitions(version: str) -> Any:
    folder = f"kubernetes-json-schema/v{_schema_version(version)}-local-strict"
    return utils.schema_contents(f"{folder}/_definitions.json", version)


def _schema_version(version: str) -> str:
    return next(v for v in utils.all_versions() if utils.major_minor(v) == version)


def quantity(text: str | float) -> float:
    """Bytes, or CPUs, of a Kubernetes quantity."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    number = str(text).rstrip("mkMGTKi")
    return float(number) * units.get(str(text)[len(number) :], 1)
