"""Write helm/proa/values.schema.json and helm/proa/README.md: `python helm/generate.py`.

The schema: schema_parts.py, schema_extras.py and the spec's own. The README: the comments `# --` in
values.yaml, and the descriptions of the keys of models[]. A test compares both with what is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from schema_extras import extras_schema  # beside this file
from schema_parts import chart_keys, closed, complete, pool

CHART = Path(__file__).resolve().parent / "proa"
COMMENT = "# -- "
DEFAULT = "# @default -- "


def schema() -> dict[str, Any]:
    """The chart's values.schema.json."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart proa",
        "definitions": {"pool": pool()},
        **complete(closed({**chart_keys(), **extras_schema()})),
    }


def schema_text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def comments(text: str) -> dict[str, tuple[str, str, Any]]:
    """(description, shown default, value) of every documented value, by its dotted path."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    values = yaml.safe_load(text)
    found = {}
    for path, line, value in _keys(root, values, ()):
        about, default = _comment_above(lines, line)
        if about:
            found[".".join(path)] = (about, default, value)
    return found


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted paths of all that is no mapping with keys."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    else:
        yield ".".join(path)


def _keys(
    node: yaml.MappingNode, values: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int, Any]]:
    for key, inner in node.value:
        here = (*path, key.value)
        yield here, key.start_mark.line, values[key.value]
        if isinstance(inner, yaml.MappingNode):
            yield from _keys(inner, values[key.value], here)


def _comment_above(lines: list[str], line: int) -> tuple[str, str]:
    """The description and the default to show; both are comments right above a key."""
    block: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].strip())
    starts = [at for at, text in enumerate(block) if text.startswith(COMMENT)]
    if not starts:
        return "", ""
    block = block[starts[-1] :]
    default = next((text[len(DEFAULT) :] for text in block if text.startswith(DEFAULT)), "")
    about = [text for text in block if not text.startswith(DEFAULT)]
    return " ".join(text.removeprefix(COMMENT).removeprefix("# ") for text in about), default


def _row(path: str, about: str, default: str, value: Any) -> str:
    shown = default or f"`{json.dumps(value)}`"
    return f"| `{path}` | {shown} | {_cell(about)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def model_rows(model: dict[str, Any], path: str = "models[]") -> Iterator[str]:
    """The keys of models[]; those of `spec` and of the pools are described elsewhere."""
    for key, one in model["properties"].items():
        here = f"{path}.{key}"
        about = one.get("description", "")
        needed = "yes" if key in model.get("required", ()) else ""
        yield f"| `{here}` | {needed} | {_cell(about)} |"
        if key != "spec" and "properties" in one:
            yield from model_rows(one, here)


def readme() -> str:
    """The chart's README.md."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    rows = [_row(path, *rest) for path, rest in comments(text).items()]
    models = model_rows(chart_keys()["models"]["items"])
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    return TEMPLATE.format(
        description=chart["description"],
        version=chart["version"],
        kube=chart["kubeVersion"].removesuffix("-0").removeprefix(">="),
        values="\n".join(rows),
        models="\n".join(models),
    )


TEMPLATE = """# proa

{description}. Chart {version}, for Kubernetes {kube} and later.

<!-- written by helm/generate.py from values.yaml and the schema -->

```
make images REGISTRY=registry.example/team
make push REGISTRY=registry.example/team
helm install proa helm/proa --set image.registry=registry.example/team
```

The default install serves the built-in model `digits` with four workers on CPUs; its requests fit
a node with 4 GiB. How to bring models, use GPUs, lock it down, watch and upgrade it:
docs/kubernetes.md in proa's repository. Sets of values to start from: helm/profiles.

## Models

| key of an entry of `models` | needed | meaning |
|---|---|---|
{models}

## Values

| value | default | meaning |
|---|---|---|
{values}
"""


def main() -> None:
    (CHART / "values.schema.json").write_text(schema_text(), encoding="utf-8")
    (CHART / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
