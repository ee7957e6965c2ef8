"""The command line: verbs, exit codes, one-line errors."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proa import __version__
from proa.cli.main import build_parser, main
from proa.local.ports import HOST

VERBS = {
    "abft",
    "chaos",
    "doctor",
    "train",
    "eval",
    "pack",
    "up",
    "status",
    "infer",
    "trace",
    "store",
    "demo",
}
SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {name: digits}
spec:
  model:
    program: digits.pt2
    inputs: [{name: image, dtype: FP32, shape: [1, 8, 8]}]
    outputs: [{name: logits, dtype: FP32, shape: [10]}]
"""


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def leaves(parser: argparse.ArgumentParser, name: str) -> dict[str, argparse.ArgumentParser]:
    inner = sub_parsers(parser)
    if not inner:
        return {name: parser}
    return {k: v for key, sub in inner.items() for k, v in leaves(sub, f"{name} {key}").items()}


def exit_code(argv: list[str]) -> int:
    """As a shell sees it: argparse exits by itself."""
    try:
        return main(argv)
    except SystemExit as exc:
        return int(exc.code or 0)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def up(tmp_path: Path, spec: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        return exit_code(["up", str(spec), "--run-dir", str(tmp_path / "run"), *options])

    return run


def test_the_verbs_are_those_that_exist() -> None:
    assert set(sub_parsers(build_parser())) == VERBS


def test_every_verb_can_print_json() -> None:
    for name, parser in leaves(build_parser(), "proa").items():
        assert any("--json" in action.option_strings for action in parser._actions), name


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["up"],
        ["up", "a.yaml", "--workers", "0"],
        ["up", "a.yaml", "--port", "eight"],
        ["infer", "digits"],
        ["infer", "digits", "--random", "--input", "x.npy"],
        ["infer", "digits", "--random", "--policy", "magic"],
        ["demo", "flying"],
    ],
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(argv) == 2
    assert "usage: proa" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"proa {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    """So that it answers at once: torch alone takes seconds."""
    code = (
        "import sys; from proa.cli.main import build_parser; build_parser();"
        "print(*{'torch', 'numpy', 'grpc', 'rich', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


@pytest.mark.parametrize("argv", [["status"], ["infer", "digits", "--random"]])
def test_without_a_run_the_error_is_one_line_that_says_how_to_start(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*argv, "--run-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("proa: ")
    assert err.count("\n") == 1
    assert "proa up SPEC" in err


def test_doctor_prints_checks_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["ok"] else 1)
    names = [check["name"] for check in found["checks"]]
    assert {"glibc", "triton", "libpython", "/dev/shm", "memory", "ports"} <= set(names)
    assert all(set(check) == {"name", "level", "found", "fix"} for check in found["checks"])


def test_doctor_names_the_fix_of_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = str(other.getsockname()[1])
        exit_code(["doctor", "--port", port])
    out = capsys.readouterr().out
    assert f"{port} taken" in out
    assert "fix: stop what listens there" in out


def test_a_wrong_spec_exits_2_with_file_and_line(
    spec: Path, up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    spec.write_text(SPEC + "  redundancy: {polcy: auto}\n")
    assert up("--port", "0", "--admin-port", "0") == 2
    assert f"{spec}:9: spec.redundancy.polcy: unknown key" in capsys.readouterr().err


def test_up_on_a_taken_port_exits_2_naming_port_and_flag(
    up: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert up("--port", str(port), "--admin-port", "0") == 2
    err = capsys.readouterr().err
    assert f"--port {port}: port {port} is taken" in err
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_pack_refuses_ends_up_before_anything_is_started(
    up: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = up("--port", "0", "--admin-port", "0", "--quiet")
    assert code in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("proa: ")
    assert "digits.pt2" in err
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "scratch").exists()
