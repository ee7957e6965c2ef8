"""Packing as a plan says, plans that do not fit, and what `onFault` leaves to the backend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.programs import Perceptron, coded_model, export
from proa.cli.pack import coverage_lines
from proa.errors import ProgramRefused, SpecError
from proa.integrity.profile.layers import model_key
from proa.integrity.profile.machine import device_of
from proa.integrity.profile.plan import FORMAT
from proa.spec import CodedModel, ProgramRef, ProtectionSpec
from proa.worker import programs
from proa.worker.manifest import Package
from proa.worker.package import pack
from proa.worker.protection import check_device

# Extra microseconds of a check: of 10,000 that the program takes, 4 % and 1 %.
EXTRA_US = {"first": 400.0, "second": 100.0}
FLOPS = {"first": 5120, "second": 960}


def spec_of(folder: Path, module: torch.nn.Module | None = None, **protection: Any) -> CodedModel:
    file = export(module or Perceptron(), folder / "model.pt2")
    return replace(coded_model(folder, file), protection=ProtectionSpec("detect", **protection))


def plan_of(spec: CodedModel, **changed: Any) -> dict[str, Any]:
    """What `proa abft profile` might have written of this model on this machine."""
    assert spec.model.program is not None
    program, digest = programs.load_exported(spec.model.program.path, None)
    rows = [
        {
            "layer": layer, "flops": FLOPS[layer], "base_us": 50.0,
            "schemes": {"row": {"us": 50.0 + extra_us}},
        }
        for layer, extra_us in EXTRA_US.items()
    ]  # fmt: skip
    tree = {
        "format": FORMAT,
        "device": asdict(device_of("cpu")),
        "model": asdict(model_key(program, digest)),
        "layers": dict.fromkeys(EXTRA_US, "row"),
        "buckets": [
            {
                "batch": 1,
                "program": {"base_us": 10_000.0, "plan_us": 10_550.0, "verdicts_us": 50.0},
                "layers": rows,
            }
        ],
    }
    for path, value in changed.items():
        inner: Any = tree
        *parents, last = path.split("__")
        for key in parents:
            inner = inner[key]
        inner[last] = value
    return tree


def planned(spec: CodedModel, tree: object, **more: Any) -> CodedModel:
    """`spec` with that plan beside it."""
    file = spec.path.parent / "plan.json"
    file.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return replace(spec, protection=replace(spec.protection, plan=ProgramRef(file), **more))


def package_of(spec: CodedModel, folder: Path, device: str = "cpu") -> Package:
    return Package.read(pack(spec, folder, device=device) / "tiny/1/package.json")


def refusal(spec: CodedModel, folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        pack(spec, folder)
    assert not (folder / "tiny").exists()
    return str(caught.value)


def test_the_plan_names_the_scheme_of_each_layer(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    tree = plan_of(spec, layers__second="none")
    package = package_of(planned(spec, tree), tmp_path / "repo")
    assert package.layers() == ("first",)
    assert package.coverage is not None
    assert coverage_lines(package.coverage)[1] == "  not second (linear): the plan says none"
    content = (tmp_path / "plan.json").read_bytes()
    assert package.coverage["plan"] == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "device": asdict(device_of("cpu")),
    }
    unplanned = package_of(spec, tmp_path / "other")
    assert unplanned.package != package.package
    assert unplanned.coverage is not None
    assert "plan" not in unplanned.coverage


def test_layers_are_left_out_to_keep_the_limit(tmp_path: Path) -> None:
    """Checked all: 5.5 % of 10 ms. `second` covers fewer FLOPs a microsecond than `first`."""
    spec = spec_of(tmp_path)
    tree = plan_of(spec)
    names = {}
    for limit, layers in ((5.5, ("first", "second")), (5.4, ("first",)), (4.4, ())):
        limited = planned(spec, tree, max_overhead_percent=limit)
        package = package_of(limited, tmp_path / f"repo-{limit}")
        assert package.layers() == layers
        assert package.coverage is not None
        reasons = {one["layer"]: one["reason"] for one in package.coverage["layers"]}
        for layer in EXTRA_US:
            expected = f"left out to stay below maxOverheadPercent {limit}"
            assert reasons[layer] == ("" if layer in layers else expected)
        names[limit] = package.package
    assert len(set(names.values())) == 3
    strict = planned(spec, tree, max_overhead_percent=5.4, strict=True)
    message = refusal(strict, tmp_path / "strict")
    assert "spec.protection: " in message
    assert message.endswith("strict: second: left out to stay below maxOverheadPercent 5.4")


def test_what_the_whole_program_showed_counts(tmp_path: Path) -> None:
    """Packed it took 11 % more, not the 5.5 % of its layers: twice of each."""
    spec = spec_of(tmp_path)
    tree = plan_of(spec)
    tree["buckets"][0]["program"]["plan_us"] = 11_100.0
    for limit, layers in ((11.0, ("first", "second")), (10.9, ("first",)), (8.9, ())):
        limited = planned(spec, tree, max_overhead_percent=limit)
        assert package_of(limited, tmp_path / f"repo-{limit}").layers() == layers


Change = Callable[[CodedModel], dict[str, Any]]
UNFIT: dict[str, tuple[Change, str]] = {
    "weights": (
        lambda spec: plan_of(spec, model__weights="0" * 64),
        "plan: model.weights: it was made for other weights (000000000000…, this program has ",
    ),
    "model": (
        lambda spec: plan_of(spec, model__graph="0" * 64),
        "plan: model.graph: it was made for other layers (000000000000…, this program has ",
    ),
    "kind": (
        lambda spec: plan_of(spec, device__kind="cuda"),
        "plan: device.kind: it was made for 'cuda', here is 'cpu'",
    ),
    "device": (
        lambda spec: plan_of(spec, device__name="NVIDIA T4"),
        "plan: device.name: it was made for 'NVIDIA T4', here is ",
    ),
    "torch": (
        lambda spec: plan_of(spec, device__torch="1.0.0"),
        "plan: device.torch: it was made for '1.0.0', here is ",
    ),
    "format": (lambda spec: plan_of(spec, format="proa-plan-0"), "format 'proa-plan-0', not "),
    "scheme": (
        lambda spec: plan_of(spec, layers__first="hope"),
        "not a plan of `proa abft profile`: ValueError(\"layers: first: scheme 'hope'\")",
    ),
    "a list": (lambda spec: plan_of(spec, buckets={"batch": 1}), "not a plan of `proa abft"),
    "times": (
        lambda spec: plan_of(spec, buckets=[{"program": {"base_us": float("nan")}}]),
        "not a plan of `proa abft profile`: ValueError('nan is not a time')",
    ),
    "half": (lambda spec: plan_of(spec, device={}), "not a plan of `proa abft profile`: KeyError"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    change, expected = UNFIT[case]
    spec = spec_of(tmp_path)
    message = refusal(planned(spec, change(spec)), tmp_path / "repo")
    assert message.startswith(f"{tmp_path}/spec.yaml: spec.protection: {tmp_path}/model.pt2: ")
    assert expected in message


def test_a_plan_is_of_one_training_and_one_network(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "one")
    tree = plan_of(spec)
    trained = Perceptron()
    with torch.no_grad():
        trained.first.weight += 1e-3
    other = planned(spec_of(tmp_path / "two", trained), tree)
    assert "plan: model.weights: " in refusal(other, tmp_path / "repo")
    mixed = planned(spec_of(tmp_path / "three", Perceptron(mixed=True)), tree)
    assert "plan: model.graph: " in refusal(mixed, tmp_path / "repo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "not JSON"), ("[1]", "not a plan"), ("[" * 100_000, "not JSON"), ("NaN", "not a plan")],
    ids=["empty", "list", "deep", "nan"],
)
def test_files_that_are_no_plans(tmp_path: Path, text: str, expected: str) -> None:
    assert f"plan.json: {expected}" in refusal(planned(spec_of(tmp_path), text), tmp_path / "repo")


def test_a_plan_is_pinned_and_has_to_be_there(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    good = planned(spec, plan_of(spec))
    file = tmp_path / "plan.json"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for ref in (ProgramRef(file, sha256), ProgramRef(file, "0" * 64), ProgramRef(tmp_path / "no")):
        pinned = replace(good, protection=replace(good.protection, plan=ref))
        if ref.sha256 == sha256:
            assert package_of(pinned, tmp_path / "repo").layers() == tuple(EXTRA_US)
        else:
            message = refusal(pinned, tmp_path / "other")
            assert ("cannot be read" if ref.sha256 is None else "its sha256 is") in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_refuses_what_was_planned_for_another_gpu(tmp_path: Path) -> None:
    """Where it is packed no GPU is: only the worker can tell."""
    spec = spec_of(tmp_path)
    tree = plan_of(spec, device__kind="cuda", device__name="NVIDIA T4")
    package = package_of(planned(spec, tree), tmp_path / "repo", "gpu")
    with pytest.raises(ProgramRefused, match=r"plan: device\.kind: it was made for 'cuda', here"):
        check_device(package.coverage, "cpu")


def test_a_worker_takes_what_was_planned_for_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    check_device(package_of(planned(spec, plan_of(spec)), tmp_path / "repo").coverage, "cpu")
    check_device(package_of(spec, tmp_path / "plain").coverage, "cpu")
    check_device(None, "cpu")


def test_on_fault_goes_into_the_package(tmp_path: Path) -> None:
    failover = package_of(spec_of(tmp_path), tmp_path / "a")
    answer = package_of(spec_of(tmp_path, on_fault="answer"), tmp_path / "b")
    assert (failover.on_fault, answer.on_fault) == ("failover", "answer")
    assert failover.package != answer.package
    text = (tmp_path / "a/tiny/1/package.json").read_text()
    old = {key: value for key, value in json.loads(text).items() if key != "on_fault"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Package.read(tmp_path / "old.json").on_fault == "failover"


def test_one_scheme_for_all_layers(tmp_path: Path) -> None:
    package = package_of(spec_of(tmp_path, scheme="row"), tmp_path / "repo")
    assert package.coverage is not None
    assert {one["scheme"] for one in package.coverage["layers"]} == {"row"}
    assert package.package != package_of(spec_of(tmp_path), tmp_path / "auto").package
