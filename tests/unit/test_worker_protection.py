"""Packing with `protection`, and what the backend makes of verdicts and flipped bits; no Triton."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.programs import (
    INPUT,
    Attentive,
    Linear,
    Perceptron,
    coded_model,
    export,
    write_tiny_spec,
)
from proa.cli.main import main
from proa.cli.pack import coverage_lines
from proa.errors import EnvironmentLacks, ProgramRefused, SpecError, Unavailable
from proa.spec import CodedModel, ProtectionSpec, TensorSpec
from proa.worker import programs
from proa.worker.bitflips import BitFlips
from proa.worker.faults import Fault, FaultKind, FaultSite
from proa.worker.manifest import Package
from proa.worker.package import pack
from proa.worker.protection import refuse_corrupt, split_verdict, verdict_report
from proa_kernels import Verdict

LAYERS = ("first", "second")


def model(folder: Path, protection: ProtectionSpec, **of_module: Any) -> CodedModel:
    file = export(Perceptron(**of_module), folder / "model.pt2")
    return replace(coded_model(folder, file), protection=protection)


def packed(folder: Path, mode: str = "correct") -> tuple[Package, programs.Program]:
    version = pack(model(folder, ProtectionSpec(mode)), folder / "repo") / "tiny/1"
    package = Package.read(version / "package.json")
    deployed = package.programs["deployed"]
    return package, programs.load(version / deployed.file, deployed.sha256)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> programs.Program:
    return packed(tmp_path_factory.mktemp("correct"))[1]


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> programs.Program:
    return packed(tmp_path_factory.mktemp("detect"), "detect")[1]


def flip(site: FaultSite, **more: Any) -> Fault:
    return replace(Fault("f", FaultKind.BITFLIP, 1000, site=site, bits=4096, expires_s=1.0), **more)


def run(program: programs.Program, flips: BitFlips, *hits: Fault) -> tuple[torch.Tensor, Any]:
    image = torch.ones(2, *INPUT.shape)
    with flips.during(hits, program, len(LAYERS)):
        outputs, verdict = split_verdict(program(image), checked=True)
    return outputs[0], verdict


def test_a_packed_program_checks_and_gives_what_it_gave(tmp_path: Path) -> None:
    package, program = packed(tmp_path)
    assert package.layers() == LAYERS
    assert package.checked("deployed")
    assert package.coverage is not None
    assert (package.coverage["mode"], package.coverage["share"]) == ("correct", 1.0)
    images = torch.randn(3, *INPUT.shape)
    outputs, verdict = split_verdict(program(images), checked=True)
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], Perceptron()(images))
    assert verdict is not None
    report = verdict_report(verdict, 3)
    assert report.shape == (3, 8)
    assert report[:, :4].tolist() == [[9.0, 0.0, 0.0, 0.0]] * 3, "rows times tiles: 3 x 2 + 3 x 1"
    text = (tmp_path / "repo/tiny/config.pbtxt").read_text()
    assert 'name: "proa.abft" data_type: TYPE_FP64 dims: [ 8 ]' in text


def test_the_package_is_named_after_the_users_files_and_the_protection(tmp_path: Path) -> None:
    names = set()
    for mode in ("none", "detect", "correct"):
        spec = model(tmp_path, ProtectionSpec(mode))
        assert spec.model.program is not None
        origin = hashlib.sha256(spec.model.program.path.read_bytes()).hexdigest()
        path = pack(spec, tmp_path / mode) / "tiny/1/package.json"
        text = path.read_text()
        pack(spec, tmp_path / mode)
        assert path.read_text() == text
        checked = [f"protection {mode}", "checksums proa-checksum-2"] if mode != "none" else []
        lines = [origin, *checked, "sum-k2-r1-v1"]
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        assert Package.read(path).package == digest
        names.add(digest)
    assert len(names) == 3


def test_under_mean_the_parity_program_is_checked_too(tmp_path: Path) -> None:
    spec = model(tmp_path, ProtectionSpec("detect"))
    mean = replace(spec, redundancy=replace(spec.redundancy, coder="mean", policy="parity"))
    package = Package.read(pack(mean, tmp_path / "repo") / "tiny/1/package.json")
    assert package.checked("parity.0")
    assert [name for name, _, _ in package.signatures()["parity.0"].outputs] == ["parity.logits"]


class Odd(Perceptron):
    """Begins with a product that has no check."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.ConvTranspose2d(1, 1, 1)


def test_what_cannot_be_checked_is_named_or_refused(tmp_path: Path) -> None:
    spec = model(tmp_path, ProtectionSpec("detect"))
    export(Odd(), tmp_path / "model.pt2")
    package = Package.read(pack(spec, tmp_path / "repo") / "tiny/1/package.json")
    assert package.coverage is not None
    assert package.layers() == LAYERS
    first, second = coverage_lines(package.coverage)
    assert first.startswith("detect: 2 of 3 matrix products checked, ")
    assert second.startswith("  not conv_transpose2d (conv_transpose2d): ")
    strict = replace(spec, protection=ProtectionSpec("detect", strict=True))
    with pytest.raises(
        SpecError, match=r"spec\.protection: \S+: strict: conv_transpose2d \(\S+\): "
    ):
        pack(strict, tmp_path / "strict")


def test_proa_pack_counts_what_it_cannot_check_and_strict_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for strict in (False, True):
        path = write_tiny_spec(tmp_path, protection={"mode": "detect", "strict": strict})
        export(Odd(), tmp_path / "deployed.pt2")
        code = main(["pack", str(path), "-o", str(tmp_path / f"repo-{strict}")])
        said = capsys.readouterr()
        if strict:
            assert code == 2
            assert "strict: conv_transpose2d (conv_transpose2d): " in said.err
        else:
            assert code == 0
            assert "detect: 2 of 3 matrix products checked, " in said.out
            assert "  not conv_transpose2d (conv_transpose2d): " in said.out


def test_pack_says_what_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_spec(tmp_path, protection={"mode": "detect"})
    argv = ["pack", str(path), "-o", str(tmp_path / "repo")]
    assert main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["detect: 1 of 1 matrix products checked, 100.0 % of their FLOPs"]
    assert main([*argv, "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["coverage"]["layers"]
    assert layer["layer"] == "layer"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    spec = model(tmp_path, ProtectionSpec("correct"), bad=bad)
    with pytest.raises(ProgramRefused, match=r"spec\.model\.program: \S+: second: .*NaN or Inf"):
        pack(spec, tmp_path / "repo")


def test_proa_pack_refuses_them_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_spec(tmp_path, protection={"mode": "correct"})
    network = Linear()
    with torch.no_grad():
        network.layer.weight[1, 2] = float("nan")
    export(network, tmp_path / "deployed.pt2")
    assert main(["pack", str(path), "-o", str(tmp_path / "repo")]) == 1
    said = capsys.readouterr().err
    assert "spec.model.program" in said
    assert "layer: " in said
    assert "NaN or Inf" in said
    assert not (tmp_path / "repo" / "tiny").exists()


def test_a_program_that_is_protected_already(tmp_path: Path) -> None:
    spec = model(tmp_path, ProtectionSpec("correct"))
    assert spec.model.program is not None
    packed_file = pack(spec, tmp_path / "repo") / "tiny/1/deployed.pt2"
    again = replace(
        spec, model=replace(spec.model, program=replace(spec.model.program, path=packed_file))
    )
    with pytest.raises(SpecError, match="the program is protected already"):
        pack(again, tmp_path / "again")


def test_the_name_of_the_report_is_taken(tmp_path: Path) -> None:
    spec = model(tmp_path, ProtectionSpec())
    outputs = (TensorSpec("proa.abft", "FP32", (3,)),)
    with pytest.raises(SpecError, match="taken by a report of workers"):
        pack(replace(spec, model=replace(spec.model, outputs=outputs)), tmp_path / "repo")


def test_a_flipped_accumulator_is_repaired_bit_for_bit(corrected: programs.Program) -> None:
    fault = flip(FaultSite.ACTIVATION)
    flips = BitFlips(lambda: [fault])
    clean, _ = run(corrected, flips)
    hit = set()
    for _ in range(8):
        found, verdict = run(corrected, flips, fault)
        assert torch.equal(found, clean)
        refuse_corrupt(verdict, LAYERS)
        assert Verdict.read(verdict).status == "corrected"
        hit.add(Verdict.read(verdict).layer)
    assert hit == {0, 1}, "one layer at a time, drawn anew"
    assert Verdict.read(run(corrected, flips)[1]).status == "clean"


def test_layers_of_several_products_are_hit_once(tmp_path: Path) -> None:
    """Attention makes three, and a fault may be in whatever comes after it."""
    file = export(Attentive(), tmp_path / "model.pt2")
    spec = replace(coded_model(tmp_path, file), protection=ProtectionSpec("correct"))
    version = pack(spec, tmp_path / "repo") / "tiny/1"
    package = Package.read(version / "package.json")
    program = programs.load(version / package.programs["deployed"].file, None)
    layers = len(package.layers())
    fault = flip(FaultSite.ACTIVATION)
    flips = BitFlips(lambda: [fault])
    image, hit = torch.rand(2, *INPUT.shape), set()
    clean, _ = split_verdict(program(image), checked=True)
    for _ in range(32):
        with flips.during([fault], program, layers):
            outputs, verdict = split_verdict(program(image), checked=True)
        assert verdict is not None
        alarmed = [at for at, one in enumerate(Verdict.read_layers(verdict)) if one.alarms]
        assert len(alarmed) == 1, "one layer at a time, and each time one"
        hit.add(alarmed[0])
        assert torch.equal(outputs[0], clean[0])
    assert hit == set(range(layers)) == {0, 1, 2}


def test_detect_refuses_and_names_the_layer(detected: programs.Program) -> None:
    fault = flip(FaultSite.ACTIVATION)
    flips = BitFlips(lambda: [fault])
    _, verdict = run(detected, flips, fault)
    layer = LAYERS[Verdict.read(verdict).layer]
    words = rf"^silent data corruption in layer {layer} \(row \d, column -?\d+\), not repaired$"
    with pytest.raises(Unavailable, match=words):
        refuse_corrupt(verdict, LAYERS)


def test_flipped_weights_stay_until_their_fault_ends(corrected: programs.Program) -> None:
    active = [flip(FaultSite.WEIGHT)]
    flips = BitFlips(lambda: active)
    clean, _ = run(corrected, flips)
    wrong, verdict = run(corrected, flips, *active)
    assert not torch.equal(wrong, clean)
    with pytest.raises(Unavailable, match="silent data corruption in layer"):
        refuse_corrupt(verdict, LAYERS)
    still, _ = run(corrected, flips)
    assert torch.equal(still, wrong) or bool(torch.isnan(wrong).any())
    active[:] = [replace(active[0], expires_s=2.0)]  # another one of that name
    assert torch.equal(run(corrected, flips)[0], clean)
    run(corrected, flips, *active)
    active.clear()
    back, verdict = run(corrected, flips)
    assert torch.equal(back, clean)
    assert Verdict.read(verdict).status == "clean"


def test_without_checked_products_no_accumulator_is_hit(tmp_path: Path) -> None:
    _, program = packed(tmp_path, "none")
    fault = flip(FaultSite.ACTIVATION)
    with BitFlips(lambda: [fault]).during([fault], program, layers=0):
        (found,) = program(torch.ones(1, *INPUT.shape))
    with torch.no_grad():
        torch.testing.assert_close(found, Perceptron()(torch.ones(1, *INPUT.shape)))


def test_where_no_kernel_has_a_hook_the_fault_is_refused(tmp_path: Path) -> None:
    """As on a GPU: the request says so, instead of a fault that does nothing."""
    _, program = packed(tmp_path, "none")
    fault = flip(FaultSite.ACTIVATION)
    with (
        pytest.raises(EnvironmentLacks, match=r"^fault f: site ACTIVATION is for workers on a CPU"),
        BitFlips(lambda: [fault]).during([fault], program, layers=2),
    ):
        program(torch.ones(1, *INPUT.shape))


def test_flipped_outputs_are_seen_by_no_check(corrected: programs.Program) -> None:
    fault = flip(FaultSite.OUTPUT, bits=1)
    flips = BitFlips(lambda: [fault])
    clean, verdict = run(corrected, flips, fault)
    (wrong,) = flips.of_outputs([fault], (clean,))
    assert not torch.equal(wrong, clean)
    assert Verdict.read(verdict).status == "clean"
