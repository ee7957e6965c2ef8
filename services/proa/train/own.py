"""What `proa train` and `proa eval` run for a user's own model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proa.codes import Code, make_code
from proa.errors import InvalidRequest, NotSupported
from proa.spec import CodedModel, ProgramRef, TensorSpec
from proa.train import data
from proa.train.digits import IMAGE, parity_name, seeded, train_digits, variants
from proa.train.distil import Pool, Store, coded_batch, train_model, train_parity
from proa.train.loop import Recipe
from proa.train.nets import CodedNet, build
from proa.train.program import Array, Arrays, Predict, Program, export, predictor
from proa.train.quality import Quality, evaluate
from proa.train.specfile import ProgramFile, parity_lines, write_spec

DIGITS = "digits"
SAMPLE_GROUPS = 1024
QUERIES_MIN = 40
CLASSES_MAX = 10_000

# `worker.programs.load` behind a lambda; train must not import the worker.
LoadProgram = Callable[[ProgramRef], Program]


@dataclass(frozen=True)
class ParityProgram:
    """A trained parity program, its quality on held-out queries (of this row alone), and the
    lines for `redundancy.parity` of the spec."""

    path: Path
    sha256: str
    k: int
    row: int
    epochs: int
    quality: Quality

    @property
    def spec_lines(self) -> str:
        """YAML to paste; rows of one k stand in row order."""
        return "\n".join(parity_lines({self.k: [ProgramFile(self.path.name, self.sha256)]}))


@dataclass(frozen=True)
class _Parts:
    """Queries by use: name -> [n, ...]."""

    train: Arrays
    validation: Arrays
    held_out: Arrays


def train_own_model(
    source: str,
    out_dir: Path,
    *,
    name: str = "model",
    arch: str = "mlp",
    epochs: int = 60,
    additivity: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """`proa train model`: a classifier of `images` [n, ...] into `labels` [n] of the .npz `source`.

    Writes NAME.pt2, NAME.safetensors and NAME.yaml (no parity yet) into `out_dir`; returns the
    spec. `digits` as the source is `train_digits`. Errors: InvalidRequest, NotSupported.
    """
    if source == DIGITS:
        return train_digits(out_dir, seed=seed, progress=progress)
    labelled, classes = _labelled(Path(source))
    n = len(labelled)
    parts = data.split(labelled, held_out=n // 5, validation=n // 10)
    inputs = [TensorSpec("images", "FP32", labelled.images.shape[1:])]
    outputs = [TensorSpec("logits", "FP32", (classes,))]
    with seeded(seed):
        net = build(arch, [inputs[0].shape], [(classes,)])
    flat = parts.train.images.reshape(len(parts.train), -1)
    net.standardise(flat, np.zeros((1, classes), np.float32), output_std=1.0)
    recipe = Recipe(epochs=epochs, batch=min(128, len(parts.train)), seed=seed)
    store = Store(out_dir / "checkpoints" / name, progress)
    train_model(net, parts.train, parts.validation, recipe, additivity=additivity, store=store)
    path = out_dir / f"{name}.pt2"
    deployed = ProgramFile(path.name, export(net, inputs, 8, path))
    write_spec(out_dir / f"{name}.yaml", name, deployed, inputs, outputs, {})
    return out_dir / f"{name}.yaml"


def train_parity_program(
    spec: CodedModel,
    load_program: LoadProgram,
    source: str,
    *,
    k: int | None = None,
    row: int = 0,
    out_dir: Path | None = None,
    arch: str = "mlp",
    width: int | None = None,
    epochs: int = 60,
    seed: int = 0,
    progress: bool = True,
) -> ParityProgram:
    """`proa train parity`: distil a parity program for the spec's model from unlabelled queries.

    `source`: `digits`, or an .npz with one array an input (`images` for an only input). Arrays
    named after the outputs, as logged from traffic, are taken as the predictions; without them
    the deployed program is run. `out_dir`: of the spec by default. A tenth of the queries stops
    the training early, a tenth is held out for the quality. Errors: InvalidRequest,
    NotSupported, WrongGroup, ProgramRefused.
    """
    if not spec.codable:
        raise NotSupported(f"{spec.name}: only fixed-shape numeric tensors can be coded")
    code = make_code("sum", k or spec.redundancy.k, max(row + 1, spec.redundancy.r))
    model, parts = spec.model, _parts(source, spec)
    predict = _deployed(spec, load_program, parts)
    pool, seen = _pool(parts.train, predict), _pool(parts.validation, predict)
    with seeded(seed):
        shapes = [t.shape for t in model.inputs], [t.shape for t in model.outputs]
        net = build(arch, *shapes, width=width)
    _standardise(net, code, row, pool)
    target = (out_dir or spec.path.parent) / parity_name(spec.name, code.k, row)
    groups = len(pool) // code.k
    recipe = Recipe(epochs=epochs, batch=max(1, min(256, groups // 8)), seed=seed)
    store = Store(target.parent / "checkpoints" / target.stem, progress)
    fitted = train_parity(net, code, row, pool, seen, recipe, store=store)
    takes = [TensorSpec(t.name, "FP32", t.shape) for t in model.inputs]
    digest = export(net, takes, model.max_batch, target)
    parity = predictor(net, model.inputs, model.outputs, batch=model.max_batch, parity=True)
    quality = evaluate(code, parts.held_out, predict, {row: parity})
    return ParityProgram(target, digest, code.k, row, fitted.epochs, quality)


def evaluate_spec(
    spec: CodedModel,
    load_program: LoadProgram,
    source: str,
    *,
    k: int | None = None,
    seed: int = 0,
) -> Quality:
    """`proa eval`: the quality of the spec's code over queries of `source`.

    `source`: `digits` (its held-out part, with labels), or an .npz; an array `labels` [n] gives
    accuracies, without it there is only agreement with the deployed model. Errors: as above.
    """
    red, model = spec.redundancy, spec.model
    code = make_code(red.coder, k or red.k, red.r)
    if not spec.codable:
        raise NotSupported(f"{spec.name}: only fixed-shape numeric tensors can be coded")
    if source == DIGITS:
        kept = data.digits().held_out
        arrays: Mapping[str, Array] = {"images": kept.images, "labels": kept.labels}
    else:
        arrays = data.read_npz(Path(source))
    queries = data.queries_of(arrays, model.inputs, source)
    deployed = _program(spec, load_program)
    predict = predictor(deployed, model.inputs, model.outputs, batch=model.max_batch)
    parity = dict.fromkeys(range(code.r), predict)
    if code.coder == "sum":
        rows = red.parity.get(code.k, ())
        if len(rows) < code.r:
            raise InvalidRequest(f"{spec.path}: {len(rows)} parity programs for k {code.k}")
        parity = {
            row: predictor(
                load_program(ref), model.inputs, model.outputs, batch=model.max_batch, parity=True
            )
            for row, ref in enumerate(rows[: code.r])
        }
    return evaluate(code, queries, predict, parity, labels=arrays.get("labels"), seed=seed)


def _program(spec: CodedModel, load_program: LoadProgram) -> Program:
    if spec.model.program is None:
        raise NotSupported(f"{spec.path}: spec.model has no program to run offline")
    return load_program(spec.model.program)


def _deployed(spec: CodedModel, load_program: LoadProgram, parts: _Parts) -> Predict:
    """Predictions that came with the queries, or else the deployed program's."""
    names = [t.name for t in spec.model.outputs]
    if all(name in parts.train for name in names):
        return lambda arrays: {name: arrays[name].astype(np.float32) for name in names}
    program = _program(spec, load_program)
    return predictor(program, spec.model.inputs, spec.model.outputs, batch=spec.model.max_batch)


def _parts(source: str, spec: CodedModel) -> _Parts:
    inputs, outputs = spec.model.inputs, spec.model.outputs
    if source == DIGITS:
        found = data.digits()
        pools = (variants(found.train.images, 0), found.validation.images, found.held_out.images)
        return _Parts(*(data.queries_of({IMAGE.name: p}, inputs, source) for p in pools))
    arrays = data.read_npz(Path(source))
    queries = data.queries_of(arrays, inputs, source)
    if all(t.name in arrays for t in outputs):
        queries |= data.queries_of(arrays, outputs, source)
    n = len(next(iter(queries.values())))
    if n < QUERIES_MIN:
        raise InvalidRequest(f"{source}: {n} queries; at least {QUERIES_MIN} are needed")
    order = np.random.default_rng(data.SPLIT_SEED).permutation(n)
    cuts = np.split(order, [n - n // 10 * 2, n - n // 10])
    return _Parts(*({name: value[cut] for name, value in queries.items()} for cut in cuts))


def _pool(arrays: Arrays, predict: Predict) -> Pool:
    predictions = predict(arrays)
    return Pool({k: v for k, v in arrays.items() if k not in predictions}, predictions)


def _standardise(net: CodedNet, code: Code, row: int, pool: Pool) -> None:
    rng = np.random.default_rng(0)
    groups = min(len(pool) // code.k, SAMPLE_GROUPS)
    chosen = rng.permutation(len(pool))[: groups * code.k].reshape(groups, code.k)
    queries, targets = coded_batch(code, row, pool, chosen)
    net.standardise(_flat(list(queries.values())), _flat(list(targets.values())))


def _flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], 1)


def _labelled(path: Path) -> tuple[data.Labelled, int]:
    arrays = data.read_npz(path)
    if not {"images", "labels"} <= set(arrays):
        raise InvalidRequest(f"{path}: needs arrays images and labels; has {', '.join(arrays)}")
    labels = arrays["labels"]
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if not whole or labels.min() < 0 or labels.max() >= CLASSES_MAX:
        raise InvalidRequest(f"{path}: labels must be integers [n] from 0 to {CLASSES_MAX - 1}")
    if len(labels) < QUERIES_MIN:
        raise InvalidRequest(f"{path}: {len(labels)} images; at least {QUERIES_MIN} are needed")
    images = arrays["images"].astype(np.float32)
    return data.Labelled(images, labels.astype(np.int64)), int(labels.max()) + 1
