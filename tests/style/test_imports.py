"""What may import what, beside the layers that `lint-imports` keeps, and that exports are real."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from style.sources import PACKAGES, SERVICES, imported, is_generated, module_name, parse, place

# The engine and the codes are pure: whoever imports these reads a clock, a network or a dice.
IMPURE = {
    "asyncio", "concurrent", "datetime", "grpc", "http", "io", "logging", "multiprocessing",
    "os", "prometheus_client", "random", "redis", "secrets", "select", "signal",
    "socket", "ssl", "subprocess", "tempfile", "threading", "time", "torch",
    "tritonclient", "urllib", "uuid", "yaml",
}  # fmt: skip
TORCH_FREE = ("client", "frontend", "encoder", "decoder", "runtime", "local", "load", "cli", "spec")


def modules(package: str) -> list[Path]:
    return sorted((SERVICES / "proa" / package).rglob("*.py"))


@pytest.mark.parametrize("package", ["codes", "dispatch", "store/protocol"])
def test_the_core_does_no_io(package: str) -> None:
    assert modules(package)
    found = [
        f"{place(path, line)} imports {name}"
        for path in modules(package)
        for name, line in imported(parse(path))
        if name.split(".")[0] in IMPURE or name == "numpy.random"
    ]
    assert found == []


@pytest.mark.parametrize("package", ["codes", "dispatch", "store/protocol"])
def test_the_core_throws_no_dice(package: str) -> None:
    found = [
        place(path, node.lineno)
        for path in modules(package)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"np.random", "numpy.random"}
    ]
    assert found == []


@pytest.mark.parametrize("package", TORCH_FREE)
def test_torch_stays_in_training_and_in_the_worker(package: str) -> None:
    found = [
        place(path, line)
        for path in modules(package)
        for name, line in imported(parse(path))
        if name.split(".")[0] == "torch"
    ]
    assert found == []


def exporting() -> list[str]:
    """Modules of ours that declare `__all__`."""
    files = [
        p for package in PACKAGES for p in sorted(package.rglob("*.py")) if not is_generated(p)
    ]
    return [module_name(p) for p in files if "\n__all__" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", exporting())
def test_every_exported_name_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    assert [export for export in module.__all__ if not hasattr(module, export)] == []
    assert len(set(module.__all__)) == len(module.__all__)
