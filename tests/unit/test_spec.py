"""The spec file: what loads, and every error with file, line, key and limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proa.errors import SpecError
from proa.spec import (
    CodedModel,
    HedgeSpec,
    ModelSpec,
    ProgramRef,
    ProtectionSpec,
    RedundancySpec,
    SloSpec,
    TensorSpec,
    load,
)

SHA = "0123456789abcdef" * 4
HEAD = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {name: digits}
"""
MODEL = """\
spec:
  model:
    program: digits.pt2
    maxBatch: 8
    inputs: [{name: image, dtype: FP32, shape: [1, 8, 8]}]
    outputs: [{name: logits, dtype: FP32, shape: [10]}]
"""
CODED = """\
  redundancy:
    policy: parity
    k: 2
    parity: {"2": [parity.pt2]}
"""
FULL = HEAD + MODEL + CODED
EXAMPLE = f"""\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {{name: digits}}
spec:                                   # shapes exclude the batch axis
  model:      {{program: digits.pt2, sha256: {SHA}, maxBatch: 8,
               inputs: [{{name: image, dtype: FP32, shape: [1, 8, 8]}}],
               outputs: [{{name: logits, dtype: FP32, shape: [10]}}]}}
  redundancy: {{mode: enforce, policy: auto, k: 2, r: 1, coder: sum,
               parity: {{"2": [digits-parity-k2.pt2]}}, pool: shared, placement: auto,
               patience: tail, groupMsMax: 5, idleReserve: 1, inflightMax: 1,
               hedge: {{delayMs: auto, budgetPercent: 10}}, backup: null, qualitySample: 0.05,
               agreementMin: 0.9}}
  protection: {{mode: none}}
  slo:        {{latencyMs: 50, percentile: 99.9, defaultDeadlineMs: 1000}}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "digits.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def loaded(folder: Path, text: str) -> CodedModel:
    return load(write(folder, text))


def message(folder: Path, text: str) -> str:
    """The error of a file, without the folder."""
    file = write(folder, text)
    with pytest.raises(SpecError) as caught:
        load(file)
    return str(caught.value).removeprefix(f"{folder}/")


# --- what loads


def test_left_out_keys_have_the_defaults_of_the_dataclasses(tmp_path: Path):
    found = loaded(tmp_path, HEAD + MODEL.replace("    maxBatch: 8\n", ""))
    assert found.redundancy == RedundancySpec()
    assert found.redundancy.hedge == HedgeSpec()
    assert found.slo == SloSpec()
    assert found.protection == ProtectionSpec("none")
    assert not found.protection.checked
    assert found.model == ModelSpec(
        inputs=(TensorSpec("image", "FP32", (1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (10,)),),
        program=ProgramRef(tmp_path / "digits.pt2"),
    )


def test_null_is_the_same_as_leaving_a_key_out(tmp_path: Path):
    text = HEAD + MODEL + "  redundancy: {policy: null, k: ~, hedge: null}\n  slo: null\n"
    assert loaded(tmp_path, text).redundancy == RedundancySpec()


def test_the_whole_example_loads(tmp_path: Path):
    found = loaded(tmp_path, EXAMPLE)
    assert found.name == "digits"
    assert found.path == tmp_path / "digits.yaml"
    assert found.model.program == ProgramRef(tmp_path / "digits.pt2", SHA)
    parity = {2: (ProgramRef(tmp_path / "digits-parity-k2.pt2"),)}
    assert found.redundancy == RedundancySpec(parity=parity)
    assert found.slo == SloSpec()


def test_values_arrive_where_they_belong(tmp_path: Path):
    text = f"""\
  redundancy:
    {{mode: observe, policy: hedge, k: 3, r: 2, pool: dedicated, placement: pod, patience: first,
     groupMsMax: 0.5, idleReserve: 0, inflightMax: 2, qualitySample: 0, agreementMin: 1,
     hedge: {{delayMs: 7.5, budgetPercent: 0}},
     parity: {{"2": [two.pt2], "3": [{{program: sub/three.pt2, sha256: {SHA}}}, three-b.pt2]}}}}
  protection: {{mode: correct, strict: true, quarantineAfter: 3, quarantineWindowMinutes: 0.5,
     quarantinePercentMax: 0, plan: plans/p.json, maxOverheadPercent: 2.5, onFault: answer}}
  slo: {{latencyMs: 20, percentile: 99, defaultDeadlineMs: 250}}
"""
    found = loaded(tmp_path, HEAD + MODEL + text)
    three = (ProgramRef(tmp_path / "sub/three.pt2", SHA), ProgramRef(tmp_path / "three-b.pt2"))
    assert found.redundancy == RedundancySpec(
        mode="observe", policy="hedge", k=3, r=2, pool="dedicated", placement="pod",
        patience="first", group_ms_max=0.5, idle_reserve=0, inflight_max=2, quality_sample=0.0,
        agreement_min=1.0, hedge=HedgeSpec(7.5, 0.0),
        parity={2: (ProgramRef(tmp_path / "two.pt2"),), 3: three},
    )  # fmt: skip
    plan = ProgramRef(tmp_path / "plans/p.json")
    assert found.protection == ProtectionSpec(
        "correct", True, 3, 0.5, 0.0, plan=plan, max_overhead_percent=2.5, on_fault="answer"
    )
    assert found.slo == SloSpec(20.0, 99.0, 250.0)
    assert list(found.programs()) == ["deployed", "parity.0", "parity.1"]


def test_a_plan_may_be_pinned(tmp_path: Path):
    text = f"  protection: {{plan: {{file: p.json, sha256: {SHA}}}, scheme: auto}}\n"
    found = loaded(tmp_path, HEAD + MODEL + text).protection
    assert found == ProtectionSpec(plan=ProgramRef(tmp_path / "p.json", SHA))


@pytest.mark.parametrize(
    ("source", "field", "value"),
    [
        ("repository: models", "repository", "models"),
        ("endpoint: triton:8001/resnet", "endpoint", "triton:8001/resnet"),
    ],
)
def test_other_sources(tmp_path: Path, source: str, field: str, value: str):
    found = loaded(tmp_path, HEAD + MODEL.replace("program: digits.pt2", source))
    expected = tmp_path / value if field == "repository" else value
    assert getattr(found.model, field) == expected
    assert found.model.program is None
    assert found.programs() == {}


def test_programs_are_those_of_the_k_in_force(tmp_path: Path):
    found = loaded(tmp_path, FULL.replace('"2": [parity', '"3": [other.pt2], "2": [parity'))
    assert found.has_parity
    assert found.programs() == {
        "deployed": ProgramRef(tmp_path / "digits.pt2"),
        "parity.0": ProgramRef(tmp_path / "parity.pt2"),
    }


def test_without_parity_programs_auto_does_without(tmp_path: Path):
    found = loaded(tmp_path, HEAD + MODEL)
    assert found.codable
    assert not found.has_parity
    assert list(found.programs()) == ["deployed"]


def test_the_mean_coder_needs_no_program(tmp_path: Path):
    found = loaded(tmp_path, HEAD + MODEL + "  redundancy: {policy: parity, coder: mean}\n")
    assert found.has_parity
    assert list(found.programs()) == ["deployed"]


@pytest.mark.parametrize("tensor", ["dtype: BYTES, shape: [1]", "dtype: FP32, shape: [-1]",
                                    "dtype: BOOL, shape: [2]"])  # fmt: skip
def test_what_cannot_be_added_up_is_served_and_not_coded(tmp_path: Path, tensor: str):
    text = (HEAD + MODEL).replace("dtype: FP32, shape: [10]", tensor)
    found = loaded(tmp_path, text)
    assert not found.codable
    assert not replace(found, redundancy=RedundancySpec(coder="mean")).has_parity
    with pytest.raises(SpecError, match="needs fixed-shape numeric"):
        loaded(tmp_path, text + "  redundancy: {policy: parity, coder: mean}\n")


def test_a_scalar_per_query_is_codable(tmp_path: Path):
    found = loaded(tmp_path, (HEAD + MODEL).replace("shape: [10]", "shape: []"))
    assert found.model.outputs[0].shape == ()
    assert found.codable


# --- errors

CASES = {
    "unknown key with suggestion": (
        "policy: parity", "polcy: parity",
        "digits.yaml:11: spec.redundancy.polcy: unknown key; did you mean 'policy'? (known here:"),
    "unknown key without one": (
        "policy: parity", "zzz: 1", "digits.yaml:11: spec.redundancy.zzz: unknown key (known here"),
    "unknown key at the top": ("kind:", "spec2: 1\nkind:", "digits.yaml:2: spec2: unknown key"),
    "unknown key of the model": ("maxBatch", "maxbatch", "spec.model.maxbatch: unknown key; did"),
    "unknown key of a tensor": (
        "dtype: FP32, shape: [10]", "dtype: FP32, shape: [10], size: 1",
        "9: spec.model.outputs[0].size: unknown key"),
    "duplicate key": ("    k: 2", "    k: 2\n    k: 3",
                      "digits.yaml:13: spec.redundancy: key 'k' stands here twice"),
    "too small": ("k: 2", "k: 0", "redundancy.k: 0 is out of range; the limits are 1 to 16"),
    "too large": ("maxBatch: 8", "maxBatch: 5000",
                  "7: spec.model.maxBatch: 5000 is out of range; the limits are 1 to 1024"),
    "not finite": ("k: 2", "k: 2\n    groupMsMax: .nan", "groupMsMax: '.nan' is not a number"),
    "infinite": ("k: 2", "k: 2\n    groupMsMax: inf", "groupMsMax: inf is out of range;"),
    "share beyond 1": ("k: 2", "k: 2\n    qualitySample: 5",
                       "13: spec.redundancy.qualitySample: 5 is out of range; the limits are 0"),
    "wrong enum": ("policy: parity", "policy: partiy",
                   "11: spec.redundancy.policy: 'partiy' is not one of none, retry, replicate,"),
    "wrong version": ("v1alpha1", "v2", "1: apiVersion: 'proa.dev/v2' is not one of proa.dev/v1"),
    "wrong kind": ("CodedModel", "Pod", "digits.yaml:2: kind: 'Pod' is not one of CodedModel"),
    "missing key": ("metadata: {name: digits}", "metadata: {}", "3: metadata: missing key 'name'"),
    "missing spec": ("spec:", "spek:", "digits.yaml:1: file: missing key 'spec'"),
    "missing outputs": ("outputs:", "x:", "digits.yaml:6: spec.model: missing key 'outputs'"),
    "integer as a word": ("k: 2", "k: two", "12: spec.redundancy.k: 'two' is not an integer"),
    "integer as a fraction": ("k: 2", "k: 2.5", "redundancy.k: '2.5' is not an integer"),
    "integer as a list": ("k: 2", "k: [2]", "12: spec.redundancy.k: must be an integer"),
    "number as a mapping": ("k: 2", "k: 2\n    groupMsMax: {}", "groupMsMax: must be a number"),
    "mapping as a word": ("metadata: {name: digits}", "metadata: digits",
                          "digits.yaml:3: metadata: must be a mapping"),
    "list as a mapping": ("shape: [10]", "shape: {}", "9: spec.model.outputs[0].shape: must be a"),
    "word as a list": ("program: digits.pt2", "program: []", "6: spec.model.program: must be a st"),
    "empty word": ("program: digits.pt2", 'program: ""', "must be a string of 1 to 4096 char"),
    "bad YAML": ("[parity.pt2]}", "[parity.pt2}", "digits.yaml:13: "),
    "a tab": ("    k: 2", "\tk: 2", "digits.yaml:12: "),
    "a key that is a list": ("k: 2", "[k]: 2", "12: spec.redundancy: keys are plain words"),
    "name of a model": ("name: digits", "name: Digits!", "metadata: name must be 1 to 63 char"),
    "sha of another length": ("program: digits.pt2", "program: digits.pt2\n    sha256: abc",
                              "7: spec.model.sha256: must be a sha256 of 64 lower-case"),
    "sha without program": ("program: digits.pt2", f"repository: dir\n    sha256: {SHA}",
                            "spec.model: sha256 goes with program"),
    "sha of a parity program": ("[parity.pt2]", "[{program: p.pt2, sha256: XY}]",
                                '13: spec.redundancy.parity.2[0].sha256: must be a sha256'),
    "several sources": ("program: digits.pt2", "program: digits.pt2\n    repository: dir",
                        "6: spec.model: give exactly one of program, repository, endpoint"),
    "no source": ("    program: digits.pt2\n", "", "spec.model: give exactly one of program"),
    "endpoint without a model": ("program: digits.pt2", "endpoint: host:8001",
                                 "spec.model.endpoint: 'host:8001' is not HOST:PORT/MODEL"),
    "endpoint with a port too high": ("program: digits.pt2", "endpoint: host:99999/m",
                                      "with a port from 1 to 65535"),
    "no tensor": ("inputs: [{name: image, dtype: FP32, shape: [1, 8, 8]}]", "inputs: []",
                  "8: spec.model.inputs: needs at least one tensor"),
    "too many tensors": ("outputs: [", "outputs: [" + "{}, " * 16,
                         "9: spec.model.outputs: has 17 elements; the limit is 16"),
    "two tensors of a name": ("outputs: [", "outputs: [{name: logits, dtype: FP32, shape: [1]}, ",
                              "spec.model.outputs: tensor names must differ"),
    "a reserved tensor name": ("name: logits", "name: parity.x", "name 'parity.x': letters"),
    "an unknown dtype": ("FP32, shape: [10]", "float32, shape: [10]",
                         "spec.model.outputs[0].dtype: 'float32' is not one of FP32"),
    "a dimension of 0": ("shape: [10]", "shape: [0]", "a dimension is at least 1, or -1"),
    "a dimension below -1": ("shape: [10]", "shape: [-2]", "shape[0]: -2 is out of range"),
    "too many elements": ("shape: [10]", "shape: [65536, 65536]",
                          "has 4294967296 elements; the limit is 67108864"),
    "too many dimensions": ("shape: [10]", "shape: [1,1,1,1,1,1,1,1,1]", "9 elements; the limit"),
    "k 1 with sum": ("k: 2", "k: 1", "spec.redundancy: k 1: coder sum needs k of at least 2"),
    "k 2 with replica": ("k: 2", "k: 2\n    coder: replica", "coder replica has k 1, not 2"),
    "r 2 with mean": ("k: 2", "k: 2\n    r: 2\n    coder: mean", "coder mean has r 1, not 2"),
    "r too large": ("k: 2", "r: 4", "spec.redundancy.r: 4 is out of range; the limits are 1 to 3"),
    "parity by replica": ("k: 2", "k: 1\n    coder: replica", "replica has no parity model"),
    "parity without a program": (
        "    parity: {", "    # parity: {",
        '11: spec.redundancy: policy parity with k 2, r 1 needs 1 parity program(s) under'),
    "parity with too few programs": ("k: 2", "k: 2\n    r: 2", 'under parity."2"; 1 given'),
    "parity for a k beyond 16": ('"2":', '"17":', "key '17' must be a k from 2 to 16"),
    "parity for a k of 1": ('"2":', '"1":', "key '1' must be a k from 2 to 16"),
    "parity for one k twice": ('"2":', '"02":', "key '02' must be a k from 2 to 16"),
    "parity for a very long k": ('"2":', f'"{"9" * 1000}":', "must be a k from 2 to 16"),
    "too many parity rows": ("[parity.pt2]", "[a, b, c, d]", "has 4 elements; the limit is 3"),
    "protection": ("  redundancy:", "  protection: {mode: repair}\n  redundancy:",
                   "10: spec.protection.mode: 'repair' is not one of none, detect, correct"),
    "strict": ("  redundancy:", "  protection: {strict: yes}\n  redundancy:",
               "10: spec.protection.strict: 'yes' is not one of true, false"),
    "quarantine": ("  redundancy:", "  protection: {quarantineAfter: 0}\n  redundancy:",
                   "10: spec.protection.quarantineAfter: 0 is out of range"),
    "scheme": ("  redundancy:", "  protection: {scheme: none}\n  redundancy:",
               "10: spec.protection.scheme: 'none' is not one of auto, row, tile, dup"),
    "plan and scheme": (
        "  redundancy:", "  protection: {plan: p.json, scheme: dup}\n  redundancy:",
        "10: spec.protection: scheme dup leaves the plan nothing to choose; write auto"),
    "plan hash": (
        "  redundancy:", "  protection: {plan: {file: p.json, sha256: 7}}\n  redundancy:",
        "10: spec.protection.plan.sha256: must be a sha256 of 64 lower-case"),
    "plan without a file": (
        "  redundancy:", f"  protection: {{plan: {{sha256: {SHA}}}}}\n  redundancy:",
        "10: spec.protection.plan: missing key 'file'"),
    "a limit without a plan": (
        "  redundancy:", "  protection: {maxOverheadPercent: 3}\n  redundancy:",
        "10: spec.protection: maxOverheadPercent needs a plan, whose times it sums up"),
    "on fault": ("  redundancy:", "  protection: {onFault: hope}\n  redundancy:",
                 "10: spec.protection.onFault: 'hope' is not one of failover, answer"),
    "backup": ("k: 2", "k: 2\n    backup: {model: small}",
               "13: spec.redundancy.backup: a backup model is not supported by this version"),
    "hedge delay": ("k: 2", "k: 2\n    hedge: {delayMs: soon}", "delayMs: 'soon' is not a number"),
    "hedge budget": ("k: 2", "k: 2\n    hedge: {budgetPercent: 101}",
                     "13: spec.redundancy.hedge.budgetPercent: 101 is out of range"),
    "percentile": ("  redundancy:", "  slo: {percentile: 100}\n  redundancy:",
                   "10: spec.slo.percentile: 100 is out of range; the limits are 50 to 99.999"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_error_names_its_place(tmp_path: Path, case: str):
    old, new, expected = CASES[case]
    assert FULL.count(old) >= 1
    found = message(tmp_path, FULL.replace(old, new, 1))
    assert expected in found
    assert found.startswith("digits.yaml:")
    assert "\n" not in found


def test_the_template_of_these_cases_is_sound(tmp_path: Path):
    assert loaded(tmp_path, FULL).redundancy.policy == "parity"


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file(tmp_path: Path, text: str):
    assert message(tmp_path, text) == "digits.yaml:1: file is empty"


def test_a_file_that_is_no_mapping(tmp_path: Path):
    assert message(tmp_path, "- 1\n") == (
        "digits.yaml:1: file: must be a mapping of keys to values"
    )


def test_a_file_of_more_than_one_mebibyte(tmp_path: Path):
    padding = "#" * (1 << 20)
    assert message(tmp_path, FULL + padding) == "digits.yaml: larger than 1048576 bytes"


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path):
    with pytest.raises(SpecError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SpecError, match="cannot be read"):
        load(tmp_path / "binary.yaml")


# --- files that lie elsewhere


def test_relative_paths_begin_at_files(tmp_path: Path):
    text = FULL.replace("digits.pt2", "sub/digits.pt2").replace("[parity", "[/pinned/parity")
    found = load(write(tmp_path, text), Path("/models/digits"))
    assert found.path == tmp_path / "digits.yaml"
    assert found.model.program == ProgramRef(Path("/models/digits/sub/digits.pt2"))
    assert found.redundancy.parity == {2: (ProgramRef(Path("/pinned/parity.pt2")),)}
    own = load(write(tmp_path, (HEAD + MODEL).replace("program: digits.pt2", "repository: own")),
               Path("/models/digits"))  # fmt: skip
    assert own.model.repository == Path("/models/digits/own")


def test_an_error_names_the_spec_and_not_the_files(tmp_path: Path):
    with pytest.raises(SpecError, match=r"digits\.yaml:11: .* unknown key"):
        load(write(tmp_path, FULL.replace("policy", "polcy")), Path("/models/digits"))


def test_null_in_a_list_is_no_file_name(tmp_path: Path):
    expected = "13: spec.redundancy.parity.2[0]: must be a string"
    assert expected in message(tmp_path, FULL.replace("[parity.pt2]", "[null]"))
