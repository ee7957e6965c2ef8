"""`proa eval`, `proa train` and `proa pack`: what they print and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fakes.programs import Linear, export
from proa.cli.main import main

SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {name: tiny}
spec:
  model:
    program: tiny.pt2
    maxBatch: 4
    inputs: [{name: image, dtype: FP32, shape: [1, 4, 4]}]
    outputs: [{name: logits, dtype: FP32, shape: [3]}]
  redundancy: {k: 2, r: 1, agreementMin: 0.9, parity: {"2": [parity.pt2]}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A linear model, which is its own parity model, and 60 queries with the labels it gives."""
    export(Linear(), tmp_path / "tiny.pt2")
    export(Linear(), tmp_path / "parity.pt2")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "queries.npz", image=images)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


def test_eval_passes_a_good_parity_model(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = str(spec.parent / "queries.npz")
    assert main(["eval", str(spec), "--data", queries, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["quality"]["agreement"] == [1.0]
    assert found["quality"]["available"] is None, "there are no labels"


def test_eval_fails_a_bad_one_and_says_so(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(Linear(seed=1), spec.parent / "parity.pt2")
    assert main(["eval", str(spec), "--data", str(spec.parent / "queries.npz")]) == 1
    out = capsys.readouterr().out
    assert "agreement is BELOW agreementMin = 0.9" in out
    assert "A_a" not in out


def test_train_parity_writes_a_program_and_the_lines_for_the_spec(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["train", "parity", str(spec), "--data", str(tmp_path / "queries.npz"),
         "--k", "3", "--epochs", "1", "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert '"3":' in out
    assert "tiny-parity-k3.pt2" in out
    assert (tmp_path / "out" / "tiny-parity-k3.pt2").exists()


def test_pack_names_what_it_packed(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repository"
    assert main(["pack", str(spec), "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["programs"]) == ("tiny", ["deployed", "parity.0"])
    assert (Path(found["repository"]) / "tiny" / "config.pbtxt").exists()


def test_pack_finds_the_files_of_a_spec_that_lies_elsewhere(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "specs" / "tiny.yaml"
    elsewhere.parent.mkdir()
    spec.rename(elsewhere)
    argv = ["pack", str(elsewhere), "-o", str(tmp_path / "out")]
    assert main(argv) == 2
    assert str(elsewhere.parent / "tiny.pt2") in capsys.readouterr().err
    assert main([*argv, "--files", str(tmp_path)]) == 0
    assert (tmp_path / "out" / "tiny" / "1" / "deployed.pt2").exists()


@pytest.mark.parametrize("verb", [["train", "model", "--out", "x"], ["eval", "SPEC"]])
def test_data_that_is_not_there_exits_2(
    verb: list[str], spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(spec) if word == "SPEC" else word for word in verb]
    assert main([*argv, "--data", "nowhere.npz"]) == 2
    err = capsys.readouterr().err
    assert "nowhere.npz: not a readable .npz file" in err
    assert err.count("\n") == 1
