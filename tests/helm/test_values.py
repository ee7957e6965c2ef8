"""Every value is used, documented and in the schema; what is generated is up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import helm_python
import pytest
import yaml

from helm.chart import CHART, PROFILES, ROOT, Values, judged, over, profile, render

Schema = dict[str, Any]
DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: Schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """helm/generate.py, which lies in no package."""
    monkeypatch.syspath_prepend(ROOT / "helm")
    import generate

    return generate


def test_the_schema_is_up_to_date(generate: ModuleType) -> None:
    text = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert text == generate.schema_text(), "run: .venv/bin/python helm/generate.py"


def test_the_readme_is_up_to_date(generate: ModuleType) -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    assert text == generate.readme(), "run: .venv/bin/python helm/generate.py"


def leaves() -> list[str]:
    """Dotted paths of all values; podSecurity's are Kubernetes' own, and models has tests."""
    whole = ("models", "podSecurity.podContext", "podSecurity.containerContext")
    found = [
        leaf for leaf in walk(DEFAULTS, "") if not leaf.startswith(tuple(f"{w}." for w in whole))
    ]
    return [*found, *whole[1:]]


def walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path


def test_every_value_is_documented(generate: ModuleType) -> None:
    documented = generate.comments((CHART / "values.yaml").read_text(encoding="utf-8"))
    missing = [leaf for leaf in leaves() if leaf not in documented and not within(leaf, documented)]
    assert missing == []


def within(leaf: str, documented: dict[str, Any]) -> bool:
    """Whether a whole that is documented holds it, as `monitoring.dashboard.labels`."""
    return any(leaf.startswith(f"{path}.") for path in documented)


def schema_at(path: str) -> Schema:
    found = SCHEMA
    for key in path.split("."):
        found = resolved(found)["properties"][key]
    return resolved(found)


def resolved(schema: Schema) -> Schema:
    if "$ref" in schema:
        return resolved(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    return schema


def test_schema_and_values_have_the_same_keys() -> None:
    in_schema = set(schema_leaves(SCHEMA, ""))
    missing = [leaf for leaf in leaves() if leaf not in in_schema and not open_at(leaf)]
    assert missing == []
    unknown = [leaf for leaf in in_schema if not has_default(leaf)]
    assert sorted(unknown) == []


def schema_leaves(schema: Schema, path: str) -> Iterator[str]:
    schema = resolved(schema)
    if schema.get("properties") and not path.endswith(".settings"):
        for key, inner in schema["properties"].items():
            yield from schema_leaves(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path


def has_default(leaf: str) -> bool:
    found: Any = DEFAULTS
    for key in leaf.split("."):
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True


def open_at(leaf: str) -> bool:
    """Whether it stands in a mapping of the user's own keys, as labels."""
    parent = leaf.rpartition(".")[0]
    return bool(parent) and "properties" not in schema_at(parent)


@pytest.mark.parametrize("page", ["kubernetes.md", "runbook.md", "e2e.md"])
def test_the_docs_name_values_that_there_are(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`([a-z][A-Za-z]*(?:\.[A-Za-z0-9]+)+)[`=]", text)
    ours = [path for path in named if path.split(".")[0] in DEFAULTS]
    for path in ours:
        assert open_at(path) or schema_at(path) is not None, path


def test_our_mappings_are_closed() -> None:
    def gaps(schema: Schema, path: str) -> Iterator[str]:
        if schema.get("properties") and schema.get("additionalProperties") is not False:
            yield path
        for key, inner in schema.get("properties", {}).items():
            yield from gaps(inner, f"{path}.{key}".lstrip("."))

    whole = [*gaps(SCHEMA, ""), *gaps(SCHEMA["definitions"]["pool"], "workers")]
    # Other charts' keys; and Kubernetes' own objects, of which the name alone is checked.
    assert [path for path in whole if path != "global"] == []


# Something else that is lawful, where it does not follow from schema and default.
OTHERS: dict[str, Any] = {
    "extraEnv": [{"name": "X", "value": "1"}],
    "extraVolumes": [{"name": "x", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "settings": {"graceS": 7},
    "workers.settings": {"canaryS": 7},
    "podContext": {"runAsUser": 7},
    "containerContext": {"runAsUser": 7},
    "extraObjects": ["kind: X\napiVersion: v1\nmetadata: {name: x}"],
    "apiVersions": [],
    "maxUnavailable": 2,
    "maxSurge": 2,
    "migProfile": "2g.20gb",
    "digest": "sha256:" + "0" * 64,
    "runbookUrl": "https://runbook.example",
    "prometheusAddress": "http://other.example:9090",
    "duration": "48h",
    "renewBefore": "24h",
    "interval": "7s",
    "clusterDomain": "other.example",
    "clientsFrom": [],
    "storeClientsFrom": [],
    "store.settings": {"graceS": 7},
    "coordinator.settings": {"graceS": 7},
    "prometheusFrom": [],
    "experiments": [{"name": "one", "file": "x"}],
    "s3.endpoint": "http://other.example",
    "tracing.endpoint": "http://other.example:4318",
    "workerEndpoint": "http://other.example:4318",
    "sample": 0.5,
}
NAMES = {"frontend": "f", "encoder": "e", "decoder": "d", "worker": "w", "client": "c"}
STORE: Values = {
    "store": {
        "enabled": True,
        "image": "registry.example/valkey:8.1",
        "auth": {"existingSecret": "users"},
        "persistence": {"enabled": True},
        "snapshots": {"s3": {"enabled": True}},
    }
}
# What a value may need beside it to show.
BASES: list[Values] = [
    profile("default"),
    profile("tls"),
    over(profile("tls"), {"tls": {"existingSecrets": NAMES}}),
    over(profile("default"), {"autoscaling": {"workers": {"enabled": True}}}),
    over(
        profile("default"),
        {
            "autoscaling": {
                "workers": {"enabled": True, "kind": "keda", "prometheusAddress": "http://p"}
            }
        },
    ),
    over(profile("tls"), {"tls": {"certManager": {"issuerRef": {"name": "own"}}}}),
    over(
        profile("default"),
        {
            "chaos": {
                "enabled": True,
                "experiments": [{"name": "x", "file": "x"}],
                "token": {"existingSecret": "x"},
            }
        },
    ),
    over(
        profile("default"),
        {
            "tracing": {
                "endpoint": "http://t",
                "workerEndpoint": "http://t",
                "headers": {"existingSecret": "x"},
            }
        },
    ),
    profile("minimal"),
    over(profile("default"), STORE),
    profile("store"),
    over(profile("tls"), over(STORE, {"tls": {"existingSecrets": {**NAMES, "store": "s"}}})),
    over(profile("gpu"), {"workers": {"mode": "mig", "gpu": {"migProfile": "1g.10gb"}}}),
    over(
        profile("default"),
        {
            "models": [
                {
                    **DEFAULTS["models"][0],
                    "source": {"http": {"url": "http://m.example/m.zip", "sha256": "0" * 64}},
                }
            ]
        },
    ),
]

# Those that showed a value last come first: neighbours need the same, and a render takes its time.
LIKELY = list(range(len(BASES)))


def other(path: str, default: Any) -> Any:
    """Another value for `path` than its default."""
    *_, section, last = f".{path}".split(".")
    for key in (f"{section}.{last}", last):
        if key in OTHERS:
            return OTHERS[key]
    schema = {} if open_at(path) else schema_at(path)
    if "enum" in schema:
        return next(word for word in schema["enum"] if word != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + (1 if default + 1 <= schema.get("maximum", default + 1) else -1)
    if isinstance(default, list):
        return sample_list(schema, default)
    if isinstance(default, dict):
        return {"x": "y"}
    return 3 if default is None else "3Gi" if default[-1:] in ("i", "m") else "other"


def sample_list(schema: Schema, default: list[Any]) -> list[Any]:
    kind = schema.get("items", {}).get("type", "string")
    sample = {"integer": 7, "object": {"x": "y"}}.get(kind, "other")
    return [*default, sample]


def nested(path: str, value: Any) -> Values:
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", [leaf for leaf in leaves() if leaf != "models"])
def test_every_value_is_used(path: str) -> None:
    """Another value makes another render, with some values beside it."""
    default: Any = DEFAULTS
    for key in path.split("."):
        default = default[key]
    change = nested(path, other(path, default))
    found = next((at for at in LIKELY if differs(at, change)), None)
    assert found is not None, change
    LIKELY.remove(found)
    LIKELY.insert(0, found)


@pytest.mark.parametrize("path", leaves())
def test_null_takes_a_default_away_or_is_refused_by_name(path: str) -> None:
    """Never an error from the middle of a template, never an object that is not valid."""
    found = outcome(over(over(over(profile("tls"), profile("gpu")), STORE), nested(path, None)))
    if isinstance(found, helm_python.HelmValuesError):
        assert path.rpartition(".")[2] in str(found)
    elif isinstance(found, helm_python.HelmError):
        assert "execution error at (proa/templates/validate.yaml" in str(found)
    else:
        texts = [text for template, text in found.items() if template.endswith(".yaml")]
        assert [problem for text in texts for problem in judged(text)[1]] == []


def outcome(values: Values) -> dict[str, str] | helm_python.HelmError:
    try:
        return render(values)
    except helm_python.HelmError as refusal:
        return refusal


def differs(at: int, change: Values) -> bool:
    try:
        return base_render(at) != render(over(BASES[at], change))
    except helm_python.HelmRenderError:
        return True  # a rule across values refused it: it was read


@lru_cache
def base_render(at: int) -> dict[str, str]:
    return render(BASES[at])


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_set_nothing_that_is_unknown(name: str) -> None:
    assert render(profile(name))
