"""The training loop: one-cycle learning rate, early stop, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from proa.train import checkpoint
from proa.train.checkpoint import State

WARM_UP = 0.15


@dataclass(frozen=True)
class Recipe:
    """How to train.

    `patience`: scores without a better one before the run stops. `score_every` and
    `checkpoint_every` count epochs. `threads`: of torch; results are the same bits for the same
    number, and nets this small are fastest with 1 where cores are shared.
    """

    epochs: int
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    patience: int = 10
    score_every: int = 5
    checkpoint_every: int = 10
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Job:
    """What to train. All chance in `losses` comes from the generator and the epoch it gets:
    that is what makes a run resumable.

    `losses(epoch, rng)`: yields the loss of `steps` batches in turn. `score()`: of the net as it
    is, higher is better, on validation data. `name`: for the progress bar.
    `identity`: names data and loss, so that a checkpoint of others is not resumed.
    """

    name: str
    net: nn.Module
    steps: int
    losses: Callable[[int, np.random.Generator], Iterator[torch.Tensor]]
    score: Callable[[], float]
    identity: str = ""


@dataclass(frozen=True)
class Fitted:
    """`epochs`: run in all; `best`: the score of the weights the net now has."""

    epochs: int
    best: float
    best_epoch: int
    scores: tuple[float, ...]


def fit(
    job: Job,
    recipe: Recipe,
    *,
    path: Path | None = None,
    progress: bool = False,
    epochs_max: int | None = None,
) -> Fitted:
    """Train `job.net` in place; it ends with its best weights, in eval mode.

    A checkpoint at `path` of other data, net or settings is not resumed but replaced.
    `epochs_max`: leave off after so many epochs of this call (the checkpoint stays to go on).
    """
    run = _run(job, recipe)
    state = checkpoint.load(path, run) if path is not None else State(run)
    optimizer = torch.optim.AdamW(
        job.net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    _restore(job.net, optimizer, state)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        with _Bar(job.name, recipe.epochs, progress) as show:
            last = recipe.epochs if epochs_max is None else state.epoch + epochs_max
            while not state.done and state.epoch < last:
                _epoch(job, recipe, optimizer, state)
                show(state)
                if path is not None and (state.done or state.epoch % recipe.checkpoint_every == 0):
                    _save(job.net, optimizer, state, path)
    finally:
        torch.set_num_threads(threads)
    if path is not None and not state.done:
        _save(job.net, optimizer, state, path)
    if state.part("best."):
        job.net.load_state_dict(state.part("best."))
    job.net.eval()
    return Fitted(state.epoch, state.best, state.best_epoch, tuple(state.scores))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 15 % of the steps, then a cosine to zero."""
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _epoch(job: Job, recipe: Recipe, optimizer: torch.optim.Optimizer, state: State) -> None:
    rng = np.random.default_rng((recipe.seed, state.epoch))
    job.net.train()
    step = state.epoch * job.steps
    for loss in job.losses(state.epoch, rng):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.epochs * job.steps, recipe.learning_rate)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
    assert step == (state.epoch + 1) * job.steps, "the schedule counts on `steps` batches"
    state.epoch += 1
    if state.epoch % recipe.score_every == 0 or state.epoch == recipe.epochs:
        _score(job, state)
    stale = (state.epoch - state.best_epoch) // recipe.score_every
    state.done = state.epoch == recipe.epochs or stale >= recipe.patience


def _score(job: Job, state: State) -> None:
    job.net.eval()
    with torch.inference_mode():
        score = job.score()
    state.scores.append(score)
    if score >= state.best:  # of equals the later: its learning rate was lower
        state.best, state.best_epoch = score, state.epoch
        best = {f"best.{k}": v.detach().clone() for k, v in job.net.state_dict().items()}
        state.tensors.update(best)


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    if state.part("net."):
        net.load_state_dict(state.part("net."))
    moments = state.part("adam.")
    for i, parameter in enumerate(net.parameters()):
        found = {k: moments[f"{i}.{k}"] for k in _MOMENTS if f"{i}.{k}" in moments}
        if found:
            optimizer.state[parameter] = found


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _save(net: nn.Module, optimizer: torch.optim.Optimizer, state: State, path: Path) -> None:
    best = {f"best.{k}": v for k, v in state.part("best.").items()}
    if state.done:  # nothing will go on from here
        state.tensors = best
    else:
        state.tensors = best | {f"net.{k}": v for k, v in net.state_dict().items()}
        for i, parameter in enumerate(net.parameters()):
            for key, value in optimizer.state[parameter].items():
                state.tensors[f"adam.{i}.{key}"] = value
    checkpoint.save(state, path)


def _run(job: Job, recipe: Recipe) -> str:
    """Names what is trained and how: the start of the net, the data, the settings."""
    digest = hashlib.sha256(json.dumps([job.name, job.identity, asdict(recipe)]).encode())
    digest.update(repr(job.net).encode())
    for value in job.net.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Names the data of a job."""
    digest = hashlib.sha256()
    for name, value in arrays.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


class _Bar:
    """A rich progress bar that shows the score, or nothing."""

    def __init__(self, name: str, epochs: int, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, disable=not shown)
        self._task = self._progress.add_task(name, total=epochs)
        self._name = name

    def __enter__(self) -> Callable[[State], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def _show(self, state: State) -> None:
        score = f"  {100 * state.best:.1f} %" if state.scores else ""
        self._progress.update(self._task, completed=state.epoch, description=f"{self._name}{score}")
