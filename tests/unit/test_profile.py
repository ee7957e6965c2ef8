"""`proa abft profile` on tiny programs: what the plan says of work, time and choice."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fakes.programs import Perceptron, export, write_tiny_spec
from proa.cli.abft_profile import add_profile
from proa.cli.main import main
from proa.errors import EnvironmentLacks, InvalidRequest, ProaError, SpecError
from proa.integrity.profile import measure
from proa.integrity.profile.machine import Sizes
from proa.integrity.profile.measure import Options, Profile, Row, profile
from proa.integrity.profile.picture import roofline_svg
from proa.integrity.profile.plan import read_plan
from proa.integrity.profile.table import lines
from proa.integrity.profile.timing import Effort
from proa.worker import programs

SMALL = Sizes(gemm=64, copy_bytes=1 << 16)
QUICK = Options(effort=Effort(repeats=3, sample_ms=0.01), sizes=SMALL)


class Twins(torch.nn.Module):
    """Two layers of one shape, one of another, one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.left, self.right = (torch.nn.Linear(16, 16) for _ in range(2))
        self.last = torch.nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.left(image.flatten(1)))
        return self.last(torch.relu(self.right(torch.relu(self.left(x)))))


def found(folder: Path, module: torch.nn.Module, options: Options = QUICK) -> Profile:
    program, digest = programs.load_exported(export(module, folder / "model.pt2"), None)
    return profile(program, digest, options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Of a network with a convolution before its two layers, at batch 1 and 4."""
    return found(tmp_path_factory.mktemp("mixed"), Perceptron(mixed=True))


def row(profile: Profile, layer: str, bucket: int = 0) -> Row:
    return next(one for one in profile.buckets[bucket].rows if one.layer == layer)


def test_what_a_layer_has_to_do(mixed: Profile) -> None:
    first = row(mixed, "first", 1)
    assert (first.op, first.dtype, first.shape) == ("linear", "float32", "4x16 . 160x16")
    assert first.work.flops == 2 * 4 * 16 * 160
    assert first.work.bytes == 4 * (4 * 16 + 160 * 16 + 160 + 4 * 160), "operands and result once"
    assert first.work.bytes_im2col is None
    conv = next(one for one in mixed.buckets[1].rows if one.op == "conv2d")
    assert conv.work.bytes == 4 * (4 * 16 + 1 + 1 + 4 * 16)
    assert conv.work.bytes_im2col == 4 * (4 * 16 + 1 + 4 * 16)
    assert [bucket.batch for bucket in mixed.buckets] == [1, 4], "what it was exported for"


def test_every_layer_is_timed_and_gets_the_cheapest_scheme(mixed: Profile) -> None:
    for bucket in mixed.buckets:
        for one in bucket.rows:
            assert one.base_us > 0
            assert one.base_cpu_us is not None
            better = {name: t.us for name, t in one.schemes.items() if name in mixed.allowed}
            assert one.scheme == (min(better, key=better.__getitem__) if better else "none")
        assert bucket.program["base_us"] > 0
        for scheme in mixed.allowed:
            assert bucket.totals["guided"] <= bucket.totals[scheme] * (1 + 1e-9)
    assert {"first", "second"} <= mixed.layers.keys()
    assert set(mixed.layers.values()) <= set(mixed.allowed)


def test_layers_of_one_shape_share_their_times(tmp_path: Path) -> None:
    twins = found(tmp_path, Twins(), replace(QUICK, batches=(2,)))
    likes = {one.layer: one.like for one in twins.buckets[0].rows}
    assert likes == {"left": "left", "left#2": "left", "right": "left", "last": "last"}
    assert row(twins, "right").schemes == row(twins, "left").schemes
    assert set(twins.layers) == set(likes)


def test_the_plan_survives_its_file(mixed: Profile, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(mixed.to_dict()))
    plan = read_plan(file)
    assert (plan.device, plan.model, plan.layers) == (mixed.device, mixed.model, mixed.layers)
    cost = next(one for one in plan.expenses[0].costs if one.layer == "first")
    extra_us = row(mixed, "first").schemes[plan.layers["first"]].us - row(mixed, "first").base_us
    assert cost.flops == 5120
    assert cost.extra_us >= extra_us * (1 - 1e-9), "as measured, or scaled up to the program's"
    assert set(plan.left_out(0.0)) == set(mixed.layers)
    assert plan.left_out(None) == plan.left_out(1e9) == []


def test_schemes_batches_and_threads_are_as_asked(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    only = found(tmp_path, Perceptron(), replace(QUICK, schemes=("row",), batches=(3,), threads=2))
    assert [bucket.batch for bucket in only.buckets] == [3]
    assert only.allowed == ("row",)
    assert only.to_dict()["device"]["threads"] == 2
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(QUICK, batches=(1, 5)), "batches: 5: this program takes batches of 1 to 4"),
        (replace(QUICK, schemes=("abed",)), "schemes: 'abed' is not one of row, tile"),
        (replace(QUICK, also=("hope",)), "schemes: 'hope' is not one of row, tile"),
    ],
    ids=["batch", "scheme", "allow"],
)
def test_what_cannot_be_profiled(tmp_path: Path, options: Options, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        found(tmp_path, Perceptron(), options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    with pytest.raises(InvalidRequest, match=r"second: .*NaN or Inf"):
        found(tmp_path, Perceptron(bad=bad))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="no GPU"):
        found(tmp_path, Perceptron(), replace(QUICK, device="cuda"))


def test_the_table_has_every_layer_and_every_sum(mixed: Profile) -> None:
    text = list(lines(mixed))
    assert text[0].startswith(f"{mixed.device.name}, 1 thread(s), torch ")
    assert "on compute is the bound" in text[1]
    heads = [line for line in text if line.startswith("  layer ")]
    assert len(heads) == 2
    assert "idle" not in heads[0], "a CPU has no tensor cores to be idle"
    first = next(line for line in text if line.startswith("  first "))
    assert first.split()[1:4] == ["1x16", ".", "160x16"]
    assert first.endswith(mixed.layers["first"])
    assert sum("checked: " in line and "guided " in line for line in text) == 2


def test_the_picture_names_the_layers(mixed: Profile) -> None:
    pytest.importorskip("matplotlib")
    svg = roofline_svg(mixed)
    assert svg.startswith(b"<?xml")
    assert b"<!-- first -->" in svg, "matplotlib writes texts as paths, and beside them"
    assert svg == roofline_svg(mixed)


# --- the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`proa abft profile ARGS`, with small products and copies."""
    monkeypatch.setitem(measure.measure_machine.__globals__["SIZES"], "cpu", SMALL)
    parser = argparse.ArgumentParser()
    add_profile(parser.add_subparsers(required=True))

    def run(*args: object) -> int:
        parsed = parser.parse_args(["profile", *map(str, args), "--repeats", "3"])
        code: int = parsed.run(parsed)
        return code

    return run


def test_a_spec_gives_the_program_and_the_batches(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, picture = tmp_path / "plan.json", tmp_path / "roof.svg"
    assert command(write_tiny_spec(tmp_path), "-o", plan, "--picture", picture) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"plan written to {plan}"
    assert sum(line.startswith("batch ") for line in said) == 2
    tree = json.loads(plan.read_text())
    assert [bucket["batch"] for bucket in tree["buckets"]] == [1, 4]
    assert picture.read_bytes().startswith(b"<?xml")
    assert read_plan(plan).layers == {"layer": "row"}


def test_a_plan_is_what_packing_takes(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_spec(tmp_path)
    assert command(path, "-o", tmp_path / "plan.json", "--schemes", "row") == 0
    tree = yaml.safe_load(path.read_text())
    pack = ["pack", str(path), "-o", str(tmp_path / "repo"), "--json"]
    for limit, checked in ((0, "none"), (None, "row")):
        protection = {"mode": "correct", "plan": "plan.json", "maxOverheadPercent": limit}
        path.write_text(
            yaml.safe_dump({**tree, "spec": {**tree["spec"], "protection": protection}})
        )
        capsys.readouterr()
        assert main(pack) == 0
        (layer,) = json.loads(capsys.readouterr().out)["coverage"]["layers"]
        assert (layer["layer"], layer["scheme"]) == ("layer", checked), limit
    export(Perceptron(), tmp_path / "deployed.pt2")
    assert main(pack) == 2
    assert "plan: model.graph: it was made for other layers" in capsys.readouterr().err


def test_json_is_the_plan(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export(Perceptron(), tmp_path / "model.pt2")
    assert command(file, "--batches", "2", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["format"] == "proa-plan-1"


def refused(command: Callable[..., int], *args: Any) -> ProaError:
    with pytest.raises(ProaError) as caught:
        command(*args)
    return caught.value


def test_a_spec_without_a_program(command: Callable[..., int], tmp_path: Path) -> None:
    path = write_tiny_spec(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["spec"]["model"] |= {"program": None, "endpoint": "host:8001/tiny"}
    path.write_text(yaml.safe_dump(tree))
    error = refused(command, path)
    assert isinstance(error, SpecError)
    assert "spec.model.program: is missing" in str(error)


def test_a_plan_that_cannot_be_written(command: Callable[..., int], tmp_path: Path) -> None:
    file = export(Perceptron(), tmp_path / "model.pt2")
    for option in ("-o", "--picture"):
        error = refused(command, file, option, tmp_path / "nowhere/found")
        assert isinstance(error, InvalidRequest)
        assert "nowhere/found: cannot be written: no folder " in str(error)


def test_without_matplotlib_nothing_is_measured(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(command, tmp_path / "model.pt2", "--picture", tmp_path / "roof.svg")
    assert isinstance(error, EnvironmentLacks)
    assert "pip install 'proa[bench]'" in str(error)
