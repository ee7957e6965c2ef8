"""The project's own files, as the style tests see them: without git, without generated code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "services"
PACKAGES = (SERVICES / "proa", ROOT / "kernels" / "proa_kernels", ROOT / "chaos" / "proa_chaos")
CODE_FOLDERS = ("services", "kernels", "chaos", "tests", "benchmarks")
TEXT_FOLDERS = (*CODE_FOLDERS, ".ci", "docker", "docs", "helm", "protos")
TEXT_SUFFIXES = {".py", ".proto", ".md", ".toml", ".yaml", ".yml", ".sh", ".txt", ""}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_generated(path: Path) -> bool:
    """Whether `make proto` writes this file."""
    return path.stem.endswith(("_pb2", "_pb2_grpc"))


def python_files(*folders: str) -> list[Path]:
    """Our hand-written modules under `folders` of the root (default: every one with code)."""
    found = [p for folder in folders or CODE_FOLDERS for p in (ROOT / folder).rglob("*.py")]
    return sorted(p for p in found if not is_generated(p))


def text_files() -> list[Path]:
    """Everything a person wrote, beside what stands in the root: code, protos, docs, settings."""
    inside = [p for folder in TEXT_FOLDERS for p in (ROOT / folder).rglob("*")]
    return sorted(
        p
        for p in (*ROOT.iterdir(), *inside)
        if p.is_file()
        and p.suffix in TEXT_SUFFIXES
        and not is_generated(p)
        and "__pycache__" not in p.parts
        and p.name not in {"LICENSE", ".git", ".coverage"}
    )


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line; `from a import b` gives "a" and "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def place(path: Path, line: int) -> str:
    """`services/proa/x.py:12`, which editors follow."""
    return f"{path.relative_to(ROOT)}:{line}"


def module_name(path: Path) -> str:
    """The dotted name of a module under one of our source roots."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
