"""Train a deployed model, and parity models that are distilled from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as fn

from proa.codes import Code
from proa.errors import WrongGroup
from proa.train.data import Labelled
from proa.train.loop import Fitted, Job, Recipe, digest_of, fit
from proa.train.program import Array, Arrays
from proa.train.quality import encode_groups

VALIDATION_REPEATS = 4
LABEL_SMOOTHING = 0.1

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Store:
    """Where a run keeps its checkpoint, and what it shows; the default keeps and shows nothing."""

    path: Path | None = None
    progress: bool = False
    epochs_max: int | None = None


@dataclass(frozen=True)
class Pool:
    """Unlabelled queries (name -> [n, ...]) and the deployed model's predictions for them."""

    queries: Arrays
    predictions: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.queries.values())))


def train_model(
    net: nn.Module,
    train: Labelled,
    validation: Labelled,
    recipe: Recipe,
    *,
    additivity: float = 0.0,
    ks: Sequence[int] = (2, 4),
    augment: Augment | None = None,
    store: Store = Store(),
) -> Fitted:
    """Train a classifier of images in place; the score is its validation accuracy.

    `additivity` weighs a penalty on F(mean of k) - mean of F, for each of `ks`: it draws the
    model towards one whose predictions add up like its queries, which is what makes a parity
    model's task learnable. 0 is plain training.
    """
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    seen, truth = torch.from_numpy(validation.images), torch.from_numpy(validation.labels)
    steps = len(train) // recipe.batch
    if steps < 1:
        raise WrongGroup(f"{len(train)} images make no batch of {recipe.batch}")

    def losses(_epoch: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        drawn = augment(images, _generator(rng)) if augment is not None else images
        order = torch.from_numpy(rng.permutation(len(train)))
        for i in range(steps):
            which = order[i * recipe.batch : (i + 1) * recipe.batch]
            yield _loss(net, drawn[which], labels[which], additivity, ks)

    def score() -> float:
        return float((net(seen).argmax(1) == truth).float().mean())

    seen_data = digest_of({"images": train.images, "labels": train.labels})
    identity = f"{seen_data} {additivity} {list(ks)} {getattr(augment, '__name__', None)}"
    return _fit(Job("deployed model", net, steps, losses, score, identity), recipe, store)


def _fit(job: Job, recipe: Recipe, store: Store) -> Fitted:
    return fit(job, recipe, path=store.path, progress=store.progress, epochs_max=store.epochs_max)


def _loss(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, additivity: float, ks: Sequence[int]
) -> torch.Tensor:
    logits = net(images)
    loss = fn.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
    if not additivity:
        return loss
    for k in ks:
        mixed = net(_means(images, k))
        loss = loss + additivity * k * fn.mse_loss(mixed, _means(logits, k))
    return loss


def _means(values: torch.Tensor, k: int) -> torch.Tensor:
    """[n, ...] -> [n // k, ...]: the means of k neighbours each."""
    n = len(values) // k
    return values[: n * k].reshape(n, k, *values.shape[1:]).mean(1)


def train_parity(
    net: nn.Module,
    code: Code,
    row: int,
    pool: Pool,
    validation: Pool,
    recipe: Recipe,
    *,
    groups_max: int = 1 << 16,
    store: Store = Store(),
) -> Fitted:
    """Distil the parity model of `row` in place, from the deployed model's predictions alone.

    Each epoch takes the pool in a new order, k consecutive queries a group, at most `groups_max`
    of them. Queries and targets go through `code`, as in serving. The score is the share of
    validation predictions that, erased and decoded, name the class the deployed model named.
    net: fp32 inputs in the order of `pool.queries` -> outputs in the order of `pool.predictions`.
    """
    groups = min(len(pool) // code.k, groups_max)
    steps = groups // recipe.batch
    if steps < 1 or len(validation) < code.k:
        raise WrongGroup(
            f"{len(pool)} queries make {groups} groups, less than a batch of {recipe.batch},"
            f" or {len(validation)} queries for validation make none"
        )
    scale = {n: max(float(p.var(dtype=np.float64)), 1e-12) for n, p in pool.predictions.items()}

    def losses(_epoch: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        order = rng.permutation(len(pool))[: groups * code.k].reshape(groups, code.k)
        for i in range(steps):
            chosen = order[i * recipe.batch : (i + 1) * recipe.batch]
            queries, targets = coded_batch(code, row, pool, chosen)
            answers = _run(net, queries)
            yield torch.stack(
                [
                    fn.mse_loss(answer, torch.from_numpy(targets[name])) / (scale[name] * code.k)
                    for name, answer in zip(targets, answers, strict=True)
                ]
            ).sum()

    job = Job(
        f"parity model k={code.k} row {row}",
        net,
        steps,
        losses,
        lambda: _degraded_agreement(net, code, row, validation),
        f"{code.id} {row} {groups} {digest_of(pool.queries)} {digest_of(pool.predictions)}",
    )
    return _fit(job, recipe, store)


def coded_batch(
    code: Code, row: int, pool: Pool, groups: NDArray[np.int64]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parity queries and targets for groups [g, k] of indices: name -> fp32 [g, ...] each."""
    targets = {
        name: code.target(np.stack([value[groups[:, i]] for i in range(code.k)]), row)
        for name, value in pool.predictions.items()
    }
    return encode_groups(code, row, pool.queries, groups), targets


def _degraded_agreement(net: nn.Module, code: Code, row: int, pool: Pool) -> float:
    main = next(iter(pool.predictions))
    predictions = pool.predictions[main]
    rng = np.random.default_rng(1)
    same = total = 0
    for _ in range(VALIDATION_REPEATS):
        groups = rng.permutation(len(pool))[: len(pool) // code.k * code.k].reshape(-1, code.k)
        answer = _run(net, encode_groups(code, row, pool.queries, groups))[0].numpy()
        for i in range(code.k):
            known = {m: predictions[groups[:, m]] for m in range(code.k) if m != i}
            chosen = code.decode(known, {row: answer}, [i])[i].argmax(-1)
            same += int((chosen == predictions[groups[:, i]].argmax(-1)).sum())
            total += chosen.size
    return same / total


def _run(net: nn.Module, queries: Arrays) -> tuple[torch.Tensor, ...]:
    found = net(*(torch.from_numpy(value) for value in queries.values()))
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(1 << 62)))
