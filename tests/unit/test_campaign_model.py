"""`proa abft campaign` in a model's own layers, and the verb itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fakes.programs import Logarithm, Perceptron, export
from proa.cli.main import main
from proa.errors import InvalidRequest
from proa.integrity.campaign.answers import changes
from proa.integrity.campaign.counts import total
from proa.integrity.campaign.findings import ACTIVATIONS
from proa.integrity.campaign.inputs import Input, batches_of, inputs_of
from proa.integrity.campaign.layers import Answers, Checked, Protected
from proa.integrity.campaign.model import Model, run_model
from proa.integrity.campaign.report import Report
from proa.worker.programs import load_exported
from proa_kernels import Plan, Verdict, protect

SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {name: tiny}
spec:
  model:
    program: tiny.pt2
    maxBatch: 4
    inputs: [{name: picture, dtype: FP32, shape: [1, 4, 4]}]
    outputs: [{name: logits, dtype: FP32, shape: [3]}]
  redundancy: {policy: retry}
"""
NOTHING = Verdict(0, 0, 0, 0, 0.0, -1, -1, -1)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return export(Perceptron(), tmp_path / "tiny.pt2", batch_max=8)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return pictures(tmp_path)


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(folder / "in.npz", image=rng.normal(size=(20, 1, 4, 4)).astype(np.float32))
    return folder / "in.npz"


def model(path: Path, inputs: Path | None = None) -> Model:
    program, sha256 = load_exported(path, None)
    arrays = None if inputs is None else dict(np.load(inputs))
    return Model("tiny", program, sha256, arrays=arrays, source="in.npz" if arrays else "")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("model")
    file = export(Perceptron(), folder / "tiny.pt2", batch_max=8)
    return run_model(model(file, pictures(folder)), folder / "out", faults=400, seed=1)


def test_faults_in_layers(report: Report) -> None:
    assert {one.layer for one in report.findings} == {"first", "second"}
    assert {one.distribution for one in report.findings} == {ACTIVATIONS}
    clean = total(one.counts for one in report.findings if one.site == "clean")
    # Two batches of 8 of 20; two tiles of `first`, one of `second`.
    assert (clean.clean_checks, clean.false_positives) == (16 * 3, 0)
    products = [
        one.counts
        for one in report.findings
        if one.site in ("accumulator", "operand", "operand-weight")
    ]
    counts = total(products)
    assert counts.injected > 100
    assert counts.large_detected >= 0.9 * counts.large
    assert 0 < counts.answers < counts.injected
    assert counts.located >= 0.95 * counts.located_of > 50
    assert counts.corrected >= 0.95 * counts.detected
    assert counts.miscorrected == 0
    assert report.about["inputs"] == "in.npz"
    assert {"Layers", "Faults by kind"} <= {table.title for table in report.tables}


def test_what_is_undetected_and_critical_is_named(report: Report) -> None:
    """Outputs are not looked at after their check: a change there that matters must be listed."""
    assert report.critical
    for one in report.critical:
        assert one["layer"] in ("first", "second")
        assert one["answer"] != one["became"]
        assert 0 <= one["input"] < 16
        assert one["difference"] > 0
        assert (one["bits"] == "") == (one["fault"] in ("stride", "zeros", "swap", "pair", "stale"))
    assert any(one["site"] == "output" for one in report.critical)
    counts = total(one.counts for one in report.findings)
    assert len(report.critical) < counts.answers


def test_the_same_seed_gives_the_same_run(program: Path, inputs: Path) -> None:
    both = [
        run_model(model(program, inputs), program.parent / out, faults=30, seed=1)
        for out in ("one", "two")
    ]
    assert both[0].to_dict()["campaign"] == both[1].to_dict()["campaign"]


def test_answers_are_compared_by_their_arg_max_or_their_value() -> None:
    def answers(*outputs: torch.Tensor) -> Answers:
        return Answers(outputs, NOTHING, ())

    scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    number = torch.tensor([[5.0], [6.0]])
    clean = answers(scores, number)
    assert changes(clean, answers(scores + 0.5, number)) is None
    assert changes(clean, answers(scores, number * 1.0001)) is None
    flipped = changes(clean, answers(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), number))
    assert flipped == {"input": 1, "output": 0, "answer": 0, "became": 1, "difference": 3.0}
    off = changes(clean, answers(scores, torch.tensor([[5.0], [torch.nan]])))
    assert off is not None
    assert (off["input"], off["output"], off["answer"]) == (1, 1, 6.0)
    assert off["difference"] == float("inf")


def test_a_batch_axis_of_one_size_is_kept() -> None:
    fixed = [Input("x", torch.float32, (3, 2))]
    found = batches_of(fixed, {"x": np.zeros((10, 2), np.float32)})
    assert [len(batch[0]) for batch in found] == [3, 3, 3]
    with pytest.raises(InvalidRequest, match="2 of them; the program takes batches of 3"):
        batches_of(fixed, {"x": np.zeros((2, 2), np.float32)})


def test_inputs_that_do_not_fit_are_refused(program: Path) -> None:
    takes = inputs_of(load_exported(program, None)[0])
    assert [(one.name, one.shape) for one in takes] == [("image", (-1, 1, 4, 4))]
    zeros = np.zeros((4, 1, 4, 4), np.float32)
    assert len(batches_of(takes, {"other": zeros})) == 1, "the only one that fits"
    for arrays, message in (
        ({"image": zeros[..., :3]}, r"'image' is \[4, 1, 4, 3\], the program takes \[n, 1, 4, 4\]"),
        ({"other": zeros[..., :3]}, r"no array 'image' \[n, 1, 4, 4\]; it has other"),
        ({"image": np.full((4, 1, 4, 4), "a")}, "'image' is of <U1, not torch.float32"),
        ({"image": zeros[:0]}, "0 of them"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            batches_of(takes, arrays)


def test_programs_that_have_nothing_to_break_are_refused(program: Path, tmp_path: Path) -> None:
    plain = export(Logarithm(), tmp_path / "log.pt2")
    with pytest.raises(InvalidRequest, match="no matrix product that can be checked"):
        Protected(load_exported(plain, None)[0])
    protected, _ = protect(load_exported(program, None)[0], Plan())
    with pytest.raises(InvalidRequest, match="the program is protected already"):
        Protected(protected)


def run(*args: object) -> int:
    return main(["abft", "campaign", *map(str, args)])


def test_the_verb_on_a_spec(
    program: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SPEC)
    out, page = tmp_path / "out", tmp_path / "page.md"
    args = (spec, "--inputs", inputs, "--faults", 60, "--layer", "second", "--out", out)
    assert run(*args, "--markdown", page, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / "campaign.json").read_text())
    assert {row["op"] for row in shown["campaign"]} == {"linear"}
    assert shown["about"]["layers"] == "1 of 2 checked, 0 not checked"
    assert "## Undetected and critical" in page.read_text()
    assert run(*args) == 0, "again: the journal has it all"
    assert "Layers" in capsys.readouterr().out
    assert run(*args, "--seed", 7) == 2
    assert "the journal of another run: seed was 0, now 7" in capsys.readouterr().err


def test_the_verb_says_that_inputs_are_random(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program, "--faults", 20, "--out", tmp_path / "out") == 0
    assert "inputs: random, seed 0: no real activations" in capsys.readouterr().out


def test_the_verb_on_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--operator", "linear.dup", "--dtype", "fp32", "--distribution", "n01")
    assert run(*args, "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "linear.dup" in shown
    assert "too little to tell" in shown
    rows = json.loads((tmp_path / "campaign.json").read_text())["campaign"]
    numbers = {"clean_checks", "false_positives", "injected", "visible", "detected", "located"}
    assert all(numbers | {"corrected", "scheme", "site", "fault"} <= row.keys() for row in rows)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tiny.pt2", "--layer", "third"), "layer 'third' is not there; checked are first, second"),
        (("tiny.pt2", "--dtype", "bf16"), "--dtype is for synthetic matrices"),
        (("tiny.pt2", "--inputs", "none.npz"), "not a readable .npz file"),
        (("none.pt2",), "none.pt2: "),
        (("--layer", "first"), "--layer needs a MODEL"),
        (("--distribution", "gamma"), "unknown distribution 'gamma'; there are n01"),
    ],
)
def test_wrong_use(
    args: tuple[str, ...],
    message: str,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(program.parent)
    assert run(*args) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (program.parent / "out").exists()


@pytest.mark.parametrize("rows", [False, True])
def test_a_convolution_is_broken_as_the_product_that_it_is(rows: bool) -> None:
    """Operands and partial sums go wrong in its patches."""
    torch.manual_seed(0)
    walk = {"stride": [2, 1], "padding": [1, 2, 0, 1], "dilation": [1, 2], "groups": 1}
    x, weight = torch.randn(3, 4, 9, 8), torch.randn(5, 4, 3, 2)
    if rows:
        walk = {"stride": [2], "padding": [1, 2], "dilation": [2], "groups": 1}
        x, weight = x[:, :, 0], weight[:, :, 0]
    args = {"x": x, "weight": weight, "bias": None, "correct": False, **walk}
    call = Checked(torch.ops.proa.dup_conv2d.default, args)
    assert call.product is not None
    x_MK, weight_NK = call.product
    expected = call()[0].movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(x_MK @ weight_NK.T, expected, rtol=1e-5, atol=1e-4)
    grouped = Checked(call.target, {**args, "groups": 2})
    assert grouped.product is None
