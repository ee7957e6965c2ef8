"""`pack`: what lands on disk, and which specs it refuses with which words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fakes.programs import INPUT, Logarithm, coded_model, export, linear_model
from proa.errors import ProgramRefused, SpecError
from proa.spec import CodedModel, ModelSpec, ProgramRef, TensorSpec
from proa.worker.manifest import Package
from proa.worker.package import pack


class Broken(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.log(image.flatten(1)[:, :3])  # -inf for zeros


class Pair(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image.flatten(1)[:, :3], image


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CodedModel:
    return linear_model(tmp_path_factory.mktemp("specs"))


def with_model(spec: CodedModel, **changes: Any) -> CodedModel:
    return replace(spec, model=replace(spec.model, **changes))


def with_redundancy(spec: CodedModel, **changes: Any) -> CodedModel:
    return replace(spec, redundancy=replace(spec.redundancy, **changes))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_lies_on_disk(spec: CodedModel, tmp_path: Path) -> None:
    assert pack(spec, tmp_path / "repo", faults=True) == tmp_path / "repo"
    names = {str(p.relative_to(tmp_path / "repo")) for p in (tmp_path / "repo").rglob("*.*")}
    files = ("1/model.py", "1/package.json", "1/deployed.pt2", "1/parity.0.pt2", "config.pbtxt")
    assert names == {f"tiny/{file}" for file in files} | {
        "proa_faults/config.pbtxt",
        "proa_faults/1/model.py",
    }
    deployed, parity = (sha256(tmp_path / f"repo/tiny/1/{n}.pt2") for n in ("deployed", "parity.0"))
    tree = json.loads((tmp_path / "repo/tiny/1/package.json").read_text())
    assert tree["programs"] == {
        "deployed": {"file": "deployed.pt2", "sha256": deployed},
        "parity.0": {"file": "parity.0.pt2", "sha256": parity},
    }
    expected = hashlib.sha256(f"{deployed}\nsum-k2-r1-v1\n{parity}\n".encode()).hexdigest()
    assert tree["package"] == expected
    assert tree["code"] == {"coder": "sum", "k": 2, "r": 1}

    config = model_config_pb2.ModelConfig()
    text_format.Parse((tmp_path / "repo/tiny/config.pbtxt").read_text(), config)
    assert {k: v.string_value for k, v in config.parameters.items()} == {
        "proa.package": expected,
        "proa.programs": "deployed,parity.0",
        "proa.code": "sum:2:1",
    }
    assert [(t.name, list(t.dims)) for t in config.output] == [
        ("logits", [3]),
        ("parity.logits", [3]),
        ("proa.load", [2]),
    ]
    assert [(t.name, list(t.dims), t.optional) for t in config.input] == [
        ("image", [1, 4, 4], True),
        ("parity.image", [1, 4, 4], True),
    ]
    assert config.max_batch_size == 4


def test_package_reads_what_pack_wrote(spec: CodedModel, tmp_path: Path) -> None:
    path = pack(spec, tmp_path) / "tiny/1/package.json"
    package = Package.read(path)
    assert package.to_json() == path.read_text()
    assert package.inputs == spec.model.inputs
    path.write_text("{}")
    with pytest.raises(ProgramRefused, match="not a package of `proa pack`"):
        Package.read(path)


def test_packing_again_changes_only_what_changed(spec: CodedModel, tmp_path: Path) -> None:
    def inode(model: str) -> int:
        return (tmp_path / model).stat().st_ino

    pack(spec, tmp_path, faults=True)
    model, faults = inode("tiny"), inode("proa_faults")
    pack(spec, tmp_path, faults=True)
    assert (inode("tiny"), inode("proa_faults")) == (model, faults)
    pack(with_model(spec, max_batch=2), tmp_path)
    assert inode("tiny") != model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"], "no faults, no drafts"


def test_a_failure_leaves_the_old_package(spec: CodedModel, tmp_path: Path) -> None:
    before = pack(spec, tmp_path) / "tiny/1/package.json"
    text = before.read_text()
    broken = with_model(spec, program=ProgramRef(tmp_path / "absent.pt2"))
    with pytest.raises(SpecError):
        pack(broken, tmp_path)
    assert before.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_the_mean_code_runs_on_the_deployed_program(spec: CodedModel, tmp_path: Path) -> None:
    mean = with_redundancy(spec, coder="mean", parity={})
    package = Package.read(pack(mean, tmp_path) / "tiny/1/package.json")
    assert package.programs["parity.0"] == package.programs["deployed"]
    assert [name for name, _, _ in package.signatures()["parity.0"].inputs] == ["parity.image"]


def refusals(spec: CodedModel, folder: Path) -> dict[str, CodedModel]:
    absent = ProgramRef(folder / "absent.pt2")
    rubbish = folder / "rubbish.pt2"
    rubbish.write_bytes(b"rubbish")
    wrong = TensorSpec("logits", "FP32", (4,))
    wide = TensorSpec("image", "FP32", (-1, 4, 4))
    program = spec.model.program
    assert program is not None
    pinned = ProgramRef(program.path, "0" * 64)
    broken = ProgramRef(export(Broken(), folder / "broken.pt2"))
    pair = ProgramRef(export(Pair(), folder / "pair.pt2"))
    return {
        r'spec\.redundancy\.parity\."2"\[0\]: \S+absent\.pt2: No such file': with_redundancy(
            spec, parity={2: (absent,)}
        ),
        r"spec\.model\.program: \S+absent\.pt2: No such file": with_model(spec, program=absent),
        r"spec\.model\.program: \S+deployed\.pt2: its sha256 is \w+, expected 0": with_model(
            spec, program=pinned
        ),
        r"rubbish\.pt2: the archive is damaged": with_model(spec, program=ProgramRef(rubbish)),
        r"parity: programs for k 2, but redundancy\.k is 3": with_redundancy(spec, k=3),
        r'parity\."2": 1 programs for r 2': with_redundancy(spec, r=2),
        r"gives torch\.float32 \[1, 3\] as output 'logits'; the spec says FP32 \[1, 4\]": (
            with_model(spec, outputs=(wrong,))
        ),
        r"does not run on zeros of FP32 \[8, 1, 4, 4\]": with_model(spec, max_batch=8),
        r"gives NaN or Inf in output 'logits' for zeros": with_model(spec, program=broken),
        r"has 2 outputs; the spec has 1": with_model(spec, program=pair),
        r"tensors of variable shape cannot be coded": with_model(spec, inputs=(wide,)),
        r"has no BYTES; use model\.repository": with_model(
            spec, inputs=(TensorSpec("image", "BYTES", (1,)),)
        ),
        r"shape is empty": with_model(spec, outputs=(TensorSpec("logits", "FP32", ()),)),
    }


def test_refusals_name_field_and_file(spec: CodedModel, tmp_path: Path) -> None:
    for message, refused in refusals(spec, tmp_path).items():
        with pytest.raises((SpecError, ProgramRefused), match=rf"spec\.yaml: .*{message}"):
            pack(refused, tmp_path / "repo")
        assert list((tmp_path / "repo").iterdir()) == []


def test_nothing_to_pack_for_an_endpoint(spec: CodedModel, tmp_path: Path) -> None:
    elsewhere = with_model(spec, program=None, endpoint="host:8001/tiny")
    with pytest.raises(SpecError, match=r"spec\.model\.endpoint: nothing to pack"):
        pack(elsewhere, tmp_path)
    with pytest.raises(SpecError, match="device 'tpu' is not one of cpu, gpu"):
        pack(spec, tmp_path, device="tpu")


@pytest.mark.parametrize("inside", ["", "theirs"])
def test_a_repository_is_taken_as_it_is(tmp_path: Path, inside: str) -> None:
    source = tmp_path / "source"
    folder = source / inside
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text('backend: "python"')
    model = ModelSpec(inputs=(INPUT,), outputs=(INPUT,), repository=source)
    spec = CodedModel("theirs", model, path=tmp_path / "spec.yaml")
    out = pack(spec, tmp_path / "repo", faults=True)
    assert (out / "theirs/config.pbtxt").read_text() == 'backend: "python"'
    assert (out / "proa_faults/config.pbtxt").exists()
    with pytest.raises(SpecError, match=r"spec\.model\.repository: no config\.pbtxt in"):
        pack(replace(spec, model=replace(model, repository=tmp_path / "repo/proa_faults/1")), out)


def test_a_model_without_parity_and_one_for_a_gpu(tmp_path: Path) -> None:
    spec = coded_model(tmp_path, export(Logarithm(), tmp_path / "log.pt2"), name="log")
    config = (pack(spec, tmp_path / "repo", device="gpu") / "log/config.pbtxt").read_text()
    assert "kind: KIND_GPU" in config
    assert "parity.image" not in config
    package = Package.read(tmp_path / "repo/log/1/package.json")
    assert list(package.programs) == ["deployed"]
