"""Questions about a render of the chart."""

from __future__ import annotations

from helm.chart import APIS, SITE, Document, Values, documents, over

NAME, NAMESPACE = "demo", "prod"


def render(values: Values | None = None, *, apis: tuple[str, ...] = APIS) -> list[Document]:
    """All objects of release `demo` in namespace `prod`, with these APIs beside Kubernetes' own.

    Errors: helm_python.HelmError."""
    given = over({**SITE, "apiVersions": list(apis)}, values or {})
    return documents(given, name=NAME, namespace=NAMESPACE)


def of_kind(objects: list[Document], kind: str) -> dict[str, Document]:
    """The objects of one kind by name."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions with In) takes these labels."""
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    wanted = selector.get("matchLabels", {})
    return bool(wanted.items() <= labels.items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in rules
    )
