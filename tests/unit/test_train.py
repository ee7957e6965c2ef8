"""Training: learns, resumes to the bit, stops early, exports what it trained; the formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from proa.codes import make_code
from proa.errors import BadAnswer, InvalidRequest, NotSupported, WrongGroup
from proa.spec import TensorSpec, load
from proa.train import data as datasets
from proa.train import (
    evaluate,
    evaluate_spec,
    export,
    held_out,
    overall_accuracy,
    predictor,
    recoverable,
    reference_outputs,
    train_digits,
    train_own_model,
    train_parity_program,
)
from proa.train.digits import MAX_BATCH, parity_name, seeded
from proa.train.distil import Pool, Store, coded_batch, train_model, train_parity
from proa.train.loop import Job, Recipe, fit, learning_rate
from proa.train.nets import build

IMAGE = [TensorSpec("image", "FP32", (1, 8, 8))]
LOGITS = [TensorSpec("logits", "FP32", (10,))]
TINY = Recipe(epochs=6, batch=64, learning_rate=3e-3, score_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def split() -> datasets.Split:
    return datasets.digits()


def small_net(seed: int = 0) -> torch.nn.Module:
    with seeded(seed):
        return build("mlp", [(1, 8, 8)], [(10,)], width=32)


def weights_of(net: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def linear_pool(n: int, seed: int) -> Pool:
    """Queries and the predictions of a linear model."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1, 8, 8)).astype(np.float32)
    matrix = np.random.default_rng(7).normal(size=(64, 10)).astype(np.float32)
    return Pool({"image": x}, {"logits": x.reshape(n, 64) @ matrix})


def test_the_split_keeps_its_parts_apart(split: datasets.Split) -> None:
    parts = (split.train, split.validation, split.held_out)
    assert sum(map(len, parts)) == 1797
    assert len(split.held_out) >= 300
    seen = [{image.tobytes() for image in part.images} for part in parts]
    # scikit-learn's digits hold no image twice.
    assert sum(map(len, seen)) == len(seen[0] | seen[1] | seen[2])
    again = datasets.digits()
    np.testing.assert_array_equal(again.held_out.images, split.held_out.images)
    assert split.train.images.dtype == np.float32
    assert abs(split.train.images.mean()) < 0.05


def test_a_tiny_run_learns(split: datasets.Split) -> None:
    net = small_net()
    fitted = train_model(
        net, split.train, split.validation, TINY, additivity=0.5, augment=datasets.augment
    )
    assert fitted.best > 0.85
    assert fitted.epochs == 6
    predict = predictor(net, IMAGE, LOGITS)
    pools = [
        Pool({"image": part.images}, predict({"image": part.images}))
        for part in (split.train, split.validation)
    ]
    code = make_code("sum", 2, 1)
    parity = small_net(1)
    train_parity(parity, code, 0, pools[0], pools[1], replace(TINY, epochs=10))
    found = evaluate(
        code,
        {"image": split.held_out.images},
        predict,
        {0: predictor(parity, IMAGE, LOGITS)},
        labels=split.held_out.labels,
    )
    assert found.degraded[0] > 0.6
    assert found.available > 0.85


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("row", [0, 1])
def test_the_linear_path_alone_learns_a_linear_model(k: int, row: int) -> None:
    code = make_code("sum", k, 2)
    net = small_net()
    recipe = Recipe(epochs=30, batch=64, learning_rate=2e-2, score_every=10)
    fitted = train_parity(net, code, row, linear_pool(1200, 1), linear_pool(90, 2), recipe)
    assert fitted.best > 0.8


def test_targets_and_queries_go_through_the_code() -> None:
    code = make_code("sum", 3, 2)
    pool = linear_pool(30, 3)
    groups = np.arange(30).reshape(10, 3)
    queries, targets = coded_batch(code, 1, pool, groups)
    c = code.coefficients[1]
    x, y = pool.queries["image"][groups], pool.predictions["logits"][groups]
    np.testing.assert_allclose(queries["image"], np.einsum("i,gichw->gchw", c, x), atol=1e-5)
    np.testing.assert_allclose(targets["logits"], np.einsum("i,gic->gc", c, y), atol=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(split: datasets.Split, tmp_path: Path) -> None:
    def run(path: Path, epochs_max: int | None = None) -> tuple[dict, object]:
        net = small_net()
        store = Store(path, epochs_max=epochs_max)
        kind = {"additivity": 0.5, "augment": datasets.augment, "store": store}
        fitted = train_model(net, split.train, split.validation, TINY, **kind)
        return weights_of(net), fitted

    whole, fitted = run(tmp_path / "whole")
    _, first = run(tmp_path / "parts", 1)
    assert first.epochs == 1
    _, second = run(tmp_path / "parts", 3)
    assert second.epochs == 4
    parts, resumed = run(tmp_path / "parts")
    assert resumed == fitted
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
    kept, again = run(tmp_path / "whole")
    assert again == fitted
    np.testing.assert_array_equal(kept["linear.weight"], whole["linear.weight"])


def test_a_checkpoint_of_other_settings_is_not_resumed(
    split: datasets.Split, tmp_path: Path
) -> None:
    store = Store(tmp_path / "run", epochs_max=2)
    for expected, recipe in ((2, TINY), (4, TINY), (2, replace(TINY, seed=1))):
        net = small_net()
        fitted = train_model(net, split.train, split.validation, recipe, store=store)
        assert fitted.epochs == expected


def test_a_torn_checkpoint_starts_over(split: datasets.Split, tmp_path: Path) -> None:
    store = Store(tmp_path / "run", epochs_max=2)
    train_model(small_net(), split.train, split.validation, TINY, store=store)
    path = tmp_path / "run.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    fitted = train_model(small_net(), split.train, split.validation, TINY, store=store)
    assert fitted.epochs == 2
    assert not list(tmp_path.glob("*.pt"))


def test_early_stop_keeps_the_best_weights() -> None:
    net = torch.nn.Linear(1, 1)
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1, 0.1, 0.1])
    kept: list[np.ndarray] = []

    def score() -> float:
        kept.append(net.weight.detach().numpy().copy())
        return next(scores)

    job = Job("test", net, 1, lambda *_: iter([net(torch.ones(1, 1)).sum()]), score)
    fitted = fit(job, Recipe(epochs=100, score_every=1, patience=3))
    assert (fitted.best, fitted.best_epoch, fitted.epochs) == (0.9, 2, 5)
    np.testing.assert_array_equal(net.weight.detach().numpy(), kept[1])
    assert not net.training


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] < 0.1
    assert rates[-1] < 0.01
    assert rates.index(1.0) in (14, 15)


@pytest.mark.parametrize("arch", ["mlp", "cnn"])
def test_exported_programs_answer_like_their_nets(arch: str, tmp_path: Path) -> None:
    programs = pytest.importorskip("proa.worker.programs")
    with seeded(0):
        net = build(arch, [(1, 8, 8)], [(10,)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    digest = export(net, IMAGE, 8, tmp_path / "net.pt2")
    loaded = programs.load(tmp_path / "net.pt2", digest)
    assert (tmp_path / "net.safetensors").is_file()
    queries = {"image": np.random.default_rng(0).normal(size=(21, 1, 8, 8)).astype(np.float32)}
    for batch in (1, 5, 8):
        want = reference_outputs(net, queries, IMAGE, LOGITS, batch=batch)
        got = reference_outputs(loaded, queries, IMAGE, LOGITS, batch=batch)
        np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-6, atol=1e-6)


def test_programs_of_several_tensors(tmp_path: Path) -> None:
    inputs = [TensorSpec("a", "FP32", (3,)), TensorSpec("b", "FP32", (2, 2))]
    outputs = [TensorSpec("y", "FP32", (4,)), TensorSpec("z", "FP32", (1, 2))]
    net = build("mlp", [s.shape for s in inputs], [s.shape for s in outputs])
    export(net, inputs, 4, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    queries = {"a": np.ones((6, 3), np.float32), "b": np.ones((6, 2, 2), np.uint8)}
    found = reference_outputs(loaded, queries, inputs, outputs, batch=4)
    assert (found["y"].shape, found["z"].shape) == ((6, 4), (6, 1, 2))
    with pytest.raises(BadAnswer, match="2 outputs, not 1"):
        reference_outputs(loaded, queries, inputs, outputs[:1], batch=4)


@pytest.mark.parametrize(
    ("k", "r", "loss", "expected"),
    [
        (2, 1, 0.01, 0.980), (3, 1, 0.01, 0.970), (4, 1, 0.01, 0.961), (8, 1, 0.01, 0.923),
        (2, 1, 0.05, 0.903), (3, 1, 0.05, 0.857), (4, 1, 0.05, 0.815), (8, 1, 0.05, 0.663),
        (2, 1, 0.10, 0.810), (3, 1, 0.10, 0.729), (4, 1, 0.10, 0.656), (8, 1, 0.10, 0.431),
        (2, 2, 0.10, 0.972), (3, 2, 0.10, 0.948), (4, 2, 0.10, 0.919), (8, 2, 0.10, 0.775),
    ],
)  # fmt: skip
def test_coverage_of_lost_predictions(k: int, r: int, loss: float, expected: float) -> None:
    assert recoverable(k, r, loss) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("k", "degraded", "expected"), [(2, 0.8868, 0.915), (3, 0.7386, 0.898), (4, 0.5292, 0.880)]
)
def test_overall_accuracy_of_the_paper_with_its_coverage(
    k: int, degraded: float, expected: float
) -> None:
    """CIFAR-10 of ParM (figures 5 and 6), 10 % lost, chance 10 %."""
    found = overall_accuracy(k, 1, 0.10, 0.935, [degraded], 0.10)
    assert found == pytest.approx(expected, abs=1.1e-3)


def test_evaluation_of_an_exact_code_loses_nothing() -> None:
    pool = linear_pool(101, 4)
    matrix = np.random.default_rng(7).normal(size=(64, 10)).astype(np.float32)
    labels = pool.predictions["logits"].argmax(1)

    def model(queries: datasets.Arrays) -> dict:
        x = queries["image"]
        return {"logits": x.reshape(len(x), 64) @ matrix}

    for r in (1, 2, 3):
        code = make_code("sum", 4, r)
        found = evaluate(code, pool.queries, model, dict.fromkeys(range(r), model), labels=labels)
        assert found.available == 1.0
        assert found.agreement == found.degraded
        assert min(found.degraded) > 0.999
        assert len(found.degraded) == r
        assert max(found.error) < 1e-4
        assert len(found.by_position) == 4
        assert found.groups == 5 * 25
    blind = evaluate(code, pool.queries, model, {1: model}, repeats=1)
    assert math.isnan(blind.available)
    assert blind.agreement[0] > 0.999
    assert blind.as_json()["available"] is None
    assert json.dumps(blind.as_json())


def test_too_little_data_is_refused() -> None:
    code, net = make_code("sum", 4, 1), small_net()
    with pytest.raises(WrongGroup, match="less than a batch"):
        train_parity(net, code, 0, linear_pool(40, 1), linear_pool(40, 2), TINY)
    with pytest.raises(WrongGroup, match="no parity model"):
        evaluate(code, {}, lambda _: {}, {})
    with pytest.raises(NotSupported, match="cnn takes one input"):
        build("cnn", [(64,)], [(10,)])
    with pytest.raises(NotSupported, match="mlp, cnn"):
        build("transformer", [(64,)], [(10,)])


def user_file(path: Path, split: datasets.Split, n: int = 400) -> Path:
    """A user's data: raw pixels as uint8, as they would come from a camera."""
    part = split.train.take(np.arange(n))
    pixels = np.round(part.images * datasets.DIGITS_STD + datasets.DIGITS_MEAN)
    np.savez(path, images=pixels.astype(np.uint8), labels=part.labels)
    return path


def test_a_users_own_model_from_data_to_quality(split: datasets.Split, tmp_path: Path) -> None:
    source = user_file(tmp_path / "mine.npz", split)
    made = train_own_model(
        str(source), tmp_path, name="mine", epochs=8, additivity=0.5, progress=False
    )
    spec = load(made)
    loader = lambda ref: torch.export.load(ref.path).module()  # noqa: E731
    parity = train_parity_program(spec, loader, str(source), k=2, epochs=8, progress=False)
    assert parity.path == tmp_path / parity_name("mine", 2, 0)
    assert parity.quality.agreement[0] > 0.3
    made.write_text(
        made.read_text().replace("    coder: sum\n", f"    coder: sum\n{parity.spec_lines}\n")
    )
    found = evaluate_spec(load(made), loader, str(source))
    assert found.available > 0.8
    assert found.degraded[0] > 0.3


def test_wrong_data_files_are_named(split: datasets.Split, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(InvalidRequest, match="not a readable"):
        datasets.read_npz(path)
    np.savez(path, image=np.zeros((50, 3, 3)))
    with pytest.raises(InvalidRequest, match=r"shape \[3, 3\], the model takes \[1, 8, 8\]"):
        datasets.queries_of(datasets.read_npz(path), IMAGE, "data.npz")
    with pytest.raises(InvalidRequest, match="needs arrays images and labels"):
        train_own_model(str(path), tmp_path, progress=False)
    np.savez(path, a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InvalidRequest, match="one length"):
        datasets.read_npz(path)
    np.savez(path, images=np.array([object()]))
    with pytest.raises(InvalidRequest, match="not a readable"):
        datasets.read_npz(path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_digits_reach_their_accuracy(tmp_path: Path) -> None:
    path = train_digits(tmp_path, progress=False)
    spec = load(path)
    assert spec.has_parity
    assert set(spec.redundancy.parity) == {2, 4}
    metrics = json.loads((tmp_path / "metrics.json").read_text())["digits"]
    assert metrics["2"]["available"] >= 0.98
    assert metrics["2"]["degraded"][0] >= 0.97
    assert metrics["4"]["degraded"][0] >= 0.92
    before = path.stat().st_mtime_ns
    assert train_digits(tmp_path, ks=(2,), progress=False) == path
    assert path.stat().st_mtime_ns == before
    kept = held_out(tmp_path)
    program = torch.export.load(tmp_path / "digits.pt2").module()
    logits = reference_outputs(program, {"image": kept.images}, IMAGE, LOGITS, batch=MAX_BATCH)
    np.testing.assert_allclose(logits["logits"], kept.logits, rtol=1e-4, atol=1e-4)
