"""Words and habits that no file of ours may have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from style.sources import ROOT, imported, parse, place, python_files, text_files

# Written apart, so that this file passes its own test.
BANNED = {
    "a path of somebody's machine": r"(?<![\w.~$)}-])/(?:wo" r"rk|ro" r"ot|ho" r"me)/",
    "a registry's host": r"(?:py"
    r"pi\.org|python"
    r"hosted\.org|download\.py"
    r"torch\.org|nv"
    r"cr\.io"
    r"|gh"
    r"cr\.io|docker"
    r"\.io|quay"
    r"\.io)",
    "a note to self": r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b",
    "an unexplained type: ignore": r"#\s*type:\s*ign" r"ore(?!\[)",
}
COMMENT = re.compile(r"#(?!\s*noqa:\s*\w+\s*$)")  # a lone noqa explains nothing


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("what", BANNED)
def test_no_file_has(what: str) -> None:
    pattern = re.compile(BANNED[what])
    found = [
        f"{place(path, number)}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(lines(path), 1)
        if pattern.search(line)
    ]
    assert found == []


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every call with its line, as it is written: `time.sleep`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_no_test_sleeps() -> None:
    """Wait with `fakes.eventually`, the one place that may."""
    waiter = ROOT / "tests" / "fakes" / "eventually.py"
    found = [
        place(path, line)
        for path in python_files("tests")
        if path != waiter
        for call, line in calls(parse(path))
        if call == "time.sleep"
    ]
    assert found == []


def test_fakes_not_mocks() -> None:
    found = [
        place(path, line)
        for path in python_files()
        for name, line in imported(parse(path))
        if name.split(".")[0] in {"mock", "pytest_mock"} or name.startswith("unittest.mock")
    ]
    assert found == []


def test_only_the_cli_prints() -> None:
    cli = ROOT / "services" / "proa" / "cli"
    found = [
        place(path, line)
        for path in python_files("services", "kernels", "chaos")
        if cli not in path.parents
        for call, line in calls(parse(path))
        if call == "print"
    ]
    assert found == []


def catches_everything(node: ast.ExceptHandler) -> bool:
    names = {"Exception", "BaseException"}
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(c is None or (isinstance(c, ast.Name) and c.id in names) for c in caught)


def is_border(node: ast.ExceptHandler) -> bool:
    """Whether the handler raises (ours from theirs) or logs the traceback before it answers."""
    logs = any(call.endswith("log.exception") for call, _ in calls(node))
    return logs or any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


def test_a_catch_all_stands_at_a_border_or_says_why() -> None:
    found = []
    for path in python_files("services", "kernels", "chaos", "benchmarks"):
        text = lines(path)
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ExceptHandler) or not catches_everything(node):
                continue
            here = text[node.lineno - 1 : node.lineno + 1]
            explained = any(COMMENT.search(line) for line in here)
            if not explained and not is_border(node):
                found.append(place(path, node.lineno))
    assert found == []


def test_every_module_says_what_it_is() -> None:
    assert [place(p, 1) for p in python_files() if not ast.get_docstring(parse(p))] == []
