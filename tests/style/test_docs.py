"""The reference pages in docs/ name everything there is to name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from typing import Any

import pytest

from proa import errors
from proa.runtime.settings import Setting
from proa.spec.schema import coded_model_schema
from style.sources import ROOT, SERVICES, module_name, parse, python_files

METRIC_TYPES = {
    "Counter",
    "Gauge",
    "Histogram",
    "Summary",
    "CounterMetricFamily",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def spec_keys(schema: Any) -> set[str]:
    """Every key of a spec file; the numbers under `parity` are values."""
    if isinstance(schema, list):
        return set().union(*map(spec_keys, schema))
    if not isinstance(schema, dict):
        return set()
    own = {key for key in schema.get("properties", ()) if not key.isdigit()}
    return own.union(*map(spec_keys, schema.values()))


def setting_rows() -> list[str]:
    """The rows that document every setting of every service, as operations.md must have them."""
    rows = []
    files = [*(SERVICES / "proa").glob("*/settings.py"), SERVICES / "proa/runtime/tracing.py"]
    for path in sorted(files):
        module = importlib.import_module(module_name(path))
        for cls in vars(module).values():
            if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__:
                rows += [
                    setting_row(field) for field in dataclasses.fields(cls) if is_setting(field)
                ]
    return rows


def is_setting(field: dataclasses.Field[Any]) -> bool:
    return any(isinstance(value, Setting) for value in field.metadata.values())


def setting_row(field: dataclasses.Field[Any]) -> str:
    (one,) = (value for value in field.metadata.values() if isinstance(value, Setting))
    limits = " ".join(one.choices or ())
    if one.minimum is not None:
        limits = f"{one.minimum:,g}" if isinstance(one.minimum, float) else f"{one.minimum:,}"
        limits += " and more" if one.maximum is None else f" to {one.maximum:,}".removesuffix(".0")
    unit = f" {one.unit}" if one.unit else ""
    return f"| `{one.env}` | {default_of(field)}{unit} | {limits} | {one.why} |"


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "not set"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def environment() -> set[str]:
    """Every PROA_ variable named in the services, whether it is a declared setting or not."""
    return {
        node.value
        for path in python_files("services")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"PROA_[A-Z0-9]+_[A-Z0-9_]*[A-Z0-9]", node.value)
    }


def metric_rows() -> list[tuple[str, str]]:
    """(name, help) of every metric that the services declare."""
    return sorted(
        (call.args[0].value, str(call.args[1].value).rstrip("."))
        for path in python_files("services")
        for call in ast.walk(parse(path))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).rpartition(".")[2] in METRIC_TYPES
        and len(call.args) > 1
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[1], ast.Constant)
        and str(call.args[0].value).startswith("proa_")
    )


def public_errors() -> list[str]:
    return [name for name, value in vars(errors).items() if isinstance(value, type)]


def test_the_spec_page_has_every_key() -> None:
    text = page("spec.md")
    keys = spec_keys(coded_model_schema())
    assert {"apiVersion", "sha256", "dtype", "k", "delayMs", "percentile"} <= keys
    assert {key for key in keys if f"`{key}`" not in text} == set()


def test_the_operations_page_has_every_variable() -> None:
    text = page("operations.md")
    assert {name for name in environment() if f"`{name}`" not in text} == set()


def test_the_operations_page_has_every_setting_as_it_is() -> None:
    text = page("operations.md").splitlines()
    assert [row for row in setting_rows() if row not in text] == []


def test_the_operations_page_has_every_metric() -> None:
    text = page("operations.md")
    assert [name for name, _ in metric_rows() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", public_errors())
def test_the_errors_page_has_every_error_and_its_status(name: str) -> None:
    rows = [row for row in page("errors.md").splitlines() if f"`{name}`" in row]
    assert any(getattr(errors, name).status in row for row in rows)
