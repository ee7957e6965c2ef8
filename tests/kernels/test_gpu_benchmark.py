"""`benchmarks/abft_gpu.py`: its correctness sections in the CPU interpreter, and its shapes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from kernels.interpreted import interpreting, linear_gpu  # noqa: F401  # decides what Triton is

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
    "ResNeXt-50 2x4d": 220.8,
}


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


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
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]
    kinds = {f"{one} {two}" for one in ("linear", "conv2d") for two in ("tile", "fused")}
    assert {one["operator"] for one in found["graphs"]} == kinds | {"emulated x6", "emulated x9"}
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


def test_a_section_that_fails_loses_no_other(tmp_path: Path) -> None:
    from gpu_abft.record import Record

    def half(record: Record) -> Iterator[dict[str, float]]:
        yield {"x": math.nan}
        record.check(False, "two b", {"x": 2.0})
        with record.trying("two c"):
            raise ValueError("a row less")
        yield {"x": 3.0}
        raise KeyError("the rest")

    record = Record(tmp_path / "x.json", time.monotonic() + 60.0)
    record.section("one", lambda: 1 / 0)
    record.section("two", lambda: half(record))
    record.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["two"] == [{"x": "nan"}, {"x": 3.0}]
    assert [(one["section"], one["where"]) for one in found["errors"]] == [
        ("one", "one"), ("two", "two b"), ("two", "two c"), ("two", "two"),
    ]  # fmt: skip
    for one, word in zip(found["errors"], ("ZeroDivision", "2.0", "less", "rest"), strict=True):
        assert word in one["error"]
    late = Record(tmp_path / "late.json", time.monotonic() - 1.0)
    late.section("three", lambda: 3)
    (error,) = json.loads((tmp_path / "late.json").read_text())["errors"]
    assert (error["where"], error["error"]) == ("three", "not measured: no time was left")


def test_a_file_is_whole_whenever_its_writer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_abft.record import Record

    record = Record(tmp_path / "x.json", math.inf)
    record.save()
    before = (tmp_path / "x.json").read_text()
    record.found["more"] = 1

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record.save()
    assert (tmp_path / "x.json").read_text() == before


def test_a_lost_gpu_loses_one_shape_or_one_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, at a loss, standing still: another process goes on with what is left."""
    from gpu_abft import children
    from gpu_abft.record import Record

    monkeypatch.setattr(children, "STUCK_S", 3.0)
    monkeypatch.setattr(children, "POLL_S", 0.02)
    record = Record(tmp_path / "x.json", time.monotonic() + 60.0, run="now")
    record.found["shapes"] = {"a": {"run": "before"}, "z": {"run": "before"}}
    started: list[list[str]] = []

    def start(left: Sequence[str]) -> subprocess.Popen[bytes]:
        started.append(list(left))
        script = str(Path(__file__).with_name("dead_gpu.py"))
        return subprocess.Popen([sys.executable, script, str(record.path), "now", ",".join(left)])

    children.supervise(["smoke", "networks", "campaign"], start, record)
    rest = ["networks", "campaign"]
    assert started == [["smoke", *rest], rest, rest]
    assert record.found["smoke"] == [{"row": 1}]
    assert record.found["shapes"] == {
        "a": {"run": "now", "base_us": 1.0}, "b": {"run": "now", "failed": "exit code -9"},
        "c": {"run": "now", "base_us": 1.0}, "z": {"run": "before"},
    }  # fmt: skip
    assert [(one["section"], one["where"]) for one in record.found["errors"]] == [
        ("smoke", "smoke 2"), ("networks", "b"), ("campaign", "campaign"),
    ]  # fmt: skip
    assert "nothing happened for 3 s" in record.found["errors"][2]["error"]


def test_compiling_processes_share_one_deadline(tmp_path: Path) -> None:
    from gpu_abft import children
    from gpu_abft.record import Record

    record = Record(tmp_path / "x.json", math.inf)
    sleep, fail = "import time; time.sleep(60)", "import sys; sys.exit(7)"
    commands = [[sys.executable, "-c", code] for code in (sleep, sleep, fail, "0", sleep)]
    began = time.monotonic()
    codes = children.together(commands, 2.0, record)
    assert time.monotonic() - began < 5.0
    assert codes == [None, None, 7, 0, None]
    errors = [one["error"] for one in record.found["errors"]]
    assert errors[2] == "process 2 of 5: exit code 7"
    assert errors[0] == "process 0 of 5: ended after 2 s"
    assert len(errors) == 4


def test_a_second_call_adds_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` measures what it names, exactly, and everything else stays."""
    import abft_gpu
    from gpu_abft import layers, sections, shapes

    asked: list[str] = []

    def measure(shape: shapes.Shape, *_: object) -> dict[str, object]:
        asked.append(layers.key_of(shape))
        ratios = {"tile": 1.0 + len(asked) / 100.0, "dup": 2.0}
        return {"base_us": 2.0, "vendor_us": 1.0, "ratios": ratios, "blocks": {}}

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(layers, "measure", measure)
    monkeypatch.setattr(sections, "ANYWHERE", ("networks",))
    monkeypatch.setattr(abft_gpu, "RESULTS", tmp_path / "abft-gpu.json")
    toys = [
        shapes.Layer(f"8B decode {rows}", "o", shapes.Shape(rows, 8, 4), 3) for rows in (1, 16, 128)
    ]
    monkeypatch.setattr(shapes, "toy", lambda: toys)
    common = ["--device", "cpu", "--toy", "--out"]
    first, second = tmp_path / "abft-gpu.json", tmp_path / "second.json"
    assert abft_gpu.main([*common, str(first), "--only", "8B decode 16"]) == 0
    assert len(asked) == 1, "neither 1 nor 128"
    found = json.loads(first.read_text())
    note = "not measured: python benchmarks/abft_gpu.py --only '8B decode 1'"
    assert found["networks"]["8B decode 1"]["note"] == note
    assert [row.get("note") for row in found["rows"][:3]] == [note] * 3
    assert found["networks"]["8B decode 16"]["guided_percent"] == pytest.approx(1.0)
    found["campaign"] = ["as it was"]
    found["errors"] = [
        {"section": "networks", "where": "8B decode 1 o 1x4x8", "error": "of then"},
        {"section": "networks", "where": "8B decode 16 o 16x4x8", "error": "stays"},
    ]
    first.write_text(json.dumps(found))
    assert abft_gpu.main([*common, str(second), "--only", "8B decode 1"]) == 1
    found = json.loads(second.read_text())
    assert found["campaign"] == ["as it was"]
    assert [one["error"] for one in found["errors"]] == ["stays"]
    assert found["networks"]["8B decode 1"]["guided_percent"] == pytest.approx(2.0)
    assert found["networks"]["8B decode 16"]["guided_percent"] == pytest.approx(1.0)
    assert len(asked) == 2
    abft_gpu.main([*common, str(second), "--only", "*decode*", "--into", str(first)])
    assert len(asked) == 5
    with pytest.raises(SystemExit, match="no such network; there are 8B decode 1, "):
        abft_gpu.main([*common, str(second), "--only", "8B decode"])
    found["environment"]["triton"] = "0"
    first.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=r"is of {.*'triton': '0'"):
        abft_gpu.main([*common, str(second), "--only", "8B decode 1", "--into", str(first)])


def test_all_forms_of_a_shape_have_as_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay's own cost is shared by them: another number would be another overhead."""
    from gpu_abft import layers, shapes, timing
    from gpu_abft.record import Record

    counts: list[int] = []

    def timed(calls: Sequence[object], count: int, device: str) -> object:
        counts.append(count)
        assert count % len(calls) == 0
        return timing.Direct([lambda: None], count)

    monkeypatch.setattr(layers, "timed", timed)
    place = layers.Place("cpu", torch.float16)
    layers.measure(shapes.Shape(4, 24, 20), place, Record(Path("unsaved"), math.inf))
    assert len(counts) > 4
    assert set(counts) == {40}
    assert timing.calls_in_graph(0.0, 0.0, 7) == 42
    assert timing.calls_in_graph(1.1e12, 4e8, 1) == 1
    assert timing.calls_in_graph(2e9, 9e7, 2) == 8


def test_what_the_paper_has_is_measured_before_extras() -> None:
    from gpu_abft import shapes

    names = list(dict.fromkeys(layer.network for layer in shapes.networks()))
    extras = [at for at, name in enumerate(names) if "b=256" in name or "224" in name]
    paper = [names.index(name) for name in shapes.PAPER_T4]
    some = [names.index(name) for name in ("8B decode 1", "70B decode 256", "70B prefill 4096")]
    assert max(some) < min(paper)
    assert max(paper) < min(extras)


def test_the_shapes_are_the_papers() -> None:
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
