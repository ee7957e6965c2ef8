"""Makefile, README, versions and pins agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

import proa
from style.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PHONY = set(re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[0].split())


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row and not row.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", row) for row in rows), "exact pins, no local labels"
    return {canonical(name): version for name, version in (row.split("==") for row in rows)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_make_help_lists_every_target() -> None:
    # Inside `make test`, MAKEFLAGS would make the inner make speak of directories.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in shown.stdout.splitlines()} == PHONY


def test_every_target_is_phony_and_explained() -> None:
    targets = re.findall(r"^([a-z][a-z0-9-]*):(?!=)", MAKEFILE, re.MULTILINE)
    assert set(targets) == PHONY


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_documents_name_only_commands_that_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    quoted = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    named = set(re.findall(r"(?:^|[`\s])make ([a-z][a-z0-9-]*)", quoted))
    assert named - PHONY == set()


def test_the_readme_shows_how_to_run_and_test() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_the_version_stands_in_one_number() -> None:
    assert PROJECT["version"] == proa.__version__


# torch's CUDA build pins a triton of its own: a pin of ours would shut it out.
UNPINNED = {"triton"}


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    extras = [entry for group in PROJECT["optional-dependencies"].values() for entry in group]
    for requirement in map(Requirement, (*PROJECT["dependencies"], *extras)):
        if requirement.name not in {PROJECT["name"], *UNPINNED}:
            version = pinned.get(canonical(requirement.name))
            assert version is not None, f"constraints.txt lacks {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
