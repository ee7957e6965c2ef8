"""`benchmarks/abft_gpu.py`: its correctness sections in the CPU interpreter, and its shapes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "abft_gpu.py"
# FLOP per byte of each network's matrix products, as the paper prints them (SC'21).
INTENSITY = {
    "DLRM MLP-bottom b=1": 7.4,
    "DLRM MLP-top b=1": 7.7,
    "NoScope coral": 15.1,
    "NoScope roundabout": 37.9,
    "NoScope taipei": 51.9,
    "NoScope amsterdam": 52.7,
    "SqueezeNet": 71.1,
    "DenseNet-161": 79.0,
    "ResNet-50": 122.0,
    "AlexNet": 125.5,
    "VGG-16": 155.5,
    "Wide-ResNet-50-2": 220.8,
}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_correctness_sections_in_the_interpreter(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    toy = ["--device", "cpu", "--toy", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *toy],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["errors"] == []
    assert {one["scheme"] for one in found["smoke"]} == {"base", "tile", "fused", "dup"}
    assert all(one["false_positives"] == 0 for one in found["calibration"])
    for one in found["campaign"]:
        assert one["injected"] == 1
        assert one["site"] != "output" or one["detected"] == 0  # after the check
    assert any(one["detected"] for one in found["campaign"])
    assert {one["distribution"] for one in found["emulated_errors"]} == {
        "n01", "uniform", "exponents"
    }  # fmt: skip
    rows = found["rows"]
    assert [one["scheme"] for one in rows] == ["tile", "fused", "dup"] * 2 + ["dup"]
    wanted = {"device", "network", "layer", "shape", "scheme", "base_us", "protected_us"}
    assert all(wanted | {"vendor_us", "overhead"} <= set(one) for one in rows)
    best = found["networks"]["toy"]
    assert best["guided_percent"] <= min(best[f"{one}_percent"] for one in ("tile", "fused", "dup"))


def test_a_section_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_abft.record import Record

    record = Record(tmp_path / "x.json", seconds=60.0)
    record.section("one", lambda: 1 / 0)
    record.section("two", lambda: {"x": math.nan})
    late = Record(tmp_path / "late.json", seconds=0.0)
    late.section("three", lambda: 3)
    late.save()
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["two"] == {"x": "nan"}
    (error,) = found["errors"]
    assert error["where"] == "one"
    assert "ZeroDivisionError" in error["error"]
    (error,) = json.loads((tmp_path / "late.json").read_text())["errors"]
    assert error == {"where": "three", "error": "not measured: no time was left"}


def test_the_shapes_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_abft import shapes

    flops, moved = dict.fromkeys(INTENSITY, 0), dict.fromkeys(INTENSITY, 0)
    for layer in shapes.networks():
        if layer.network in INTENSITY:
            rows, outputs, inner = (-(-size // 8) * 8 for size in layer.shape.product)
            flops[layer.network] += 2 * rows * outputs * inner
            moved[layer.network] += 2 * (rows * outputs + rows * inner + outputs * inner)
    found = {name: round(flops[name] / moved[name], 1) for name in INTENSITY}
    assert found == INTENSITY
    assert set(shapes.PAPER_T4) == set(INTENSITY) | {"ShuffleNet"}
