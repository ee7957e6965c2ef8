"""A small DLRM (Naumov et al., arXiv 1906.00091) whose embeddings are somebody else's modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from proa.train.clicks import Clicks

BOTTOM = (13, 512, 256, 64)
TOP = (512, 512, 256, 1)
WIDTH = BOTTOM[-1]

# Told of all bags and what a step asks of each, before it asks the first.
Ahead = Callable[[Iterable[tuple[Any, torch.Tensor]]], None]


class Dlrm(nn.Module):
    """Logits [n]. bags: per table a module from ids [n, 1] to [n, 64].

    The top sees the bottom's output and the dot products of all pairs of the vectors, filled up
    with zeros to 512 columns.
    """

    def __init__(self, bags: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bags = nn.ModuleList(bags)
        self.bottom, self.top = _mlp(BOTTOM, last=True), _mlp(TOP, last=False)
        vectors = len(bags) + 1
        self._pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self._fill = TOP[0] - WIDTH - self._pairs.shape[1]
        assert self._fill >= 0, f"{len(bags)} tables have more pairs than the top has inputs"

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense)
        rows = [bag(one.unsqueeze(1)) for bag, one in zip(self.bags, ids, strict=True)]
        vectors = torch.stack([bottom, *rows], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self._pairs[0], self._pairs[1]]
        joined = functional.pad(torch.cat([bottom, dots], dim=1), (0, self._fill))
        logits: torch.Tensor = self.top(joined).squeeze(1)
        return logits


def _mlp(widths: Sequence[int], *, last: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last else layers[:-1]))


class Replica:
    """One worker's copy of the dense layers, and its steps. Adagrad, by hand: float32 vectors that
    go through any all-reduce. All replicas of one seed are the same, bit by bit."""

    def __init__(
        self,
        bags: Sequence[nn.Module],
        *,
        seed: int,
        learning_rate: float,
        ahead: Ahead = lambda _inputs: None,
    ) -> None:
        self._bags, self._ahead = bags, ahead
        self._model = Dlrm(bags)
        self._learning_rate = learning_rate
        own = [*self._model.bottom.parameters(), *self._model.top.parameters()]
        self._parameters = own
        self._squares = np.zeros(sum(one.numel() for one in own), np.float32)
        self._set(_initial(own, seed))

    def backward(self, clicks: Clicks) -> tuple[float, NDArray[np.float32]]:
        """The batch's loss, and the gradients of the dense layers; the bags take their own."""
        ids = torch.from_numpy(clicks.ids)
        self._ahead(zip(self._bags, ids, strict=True))
        logits = self._model(torch.from_numpy(clicks.dense), ids)
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(clicks.labels))
        for one in self._parameters:
            one.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), _flat([one.grad for one in self._parameters])

    def apply(self, gradients: NDArray[np.float32]) -> None:
        """One step along the mean of the replicas' gradients."""
        self._squares += gradients * gradients
        weights = _flat([one.detach() for one in self._parameters])
        weights -= np.float32(self._learning_rate) * (
            gradients / (np.sqrt(self._squares) + np.float32(1e-8))
        )
        self._set(weights)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Weights and optimiser's state, to be kept."""
        weights = _flat([one.detach() for one in self._parameters])
        return {"weights": weights, "squares": self._squares.copy()}

    def load(self, state: dict[str, NDArray[np.float32]]) -> None:
        self._set(state["weights"])
        self._squares = state["squares"].copy()

    def _set(self, weights: NDArray[np.float32]) -> None:
        at = 0
        with torch.no_grad():
            for one in self._parameters:
                one.copy_(torch.from_numpy(weights[at : at + one.numel()]).view(one.shape))
                at += one.numel()


def _initial(parameters: Sequence[torch.Tensor], seed: int) -> NDArray[np.float32]:
    """As torch draws them for nn.Linear: uniform, within 1 / sqrt(inputs). From a generator of its
    own: torch's is shared by all threads."""
    draw = np.random.default_rng((seed, 2))
    found, limit = [], 0.0
    for one in parameters:
        if one.dim() == 2:
            limit = float(one.shape[1]) ** -0.5  # its bias comes next
        found.append(draw.uniform(-limit, limit, one.numel()).astype(np.float32))
    return np.concatenate(found)


def _flat(values: Sequence[torch.Tensor | None]) -> NDArray[np.float32]:
    return np.concatenate([one.reshape(-1).numpy() for one in values if one is not None])


def one_thread() -> None:
    """Sums in one order: the same bits in every run."""
    torch.set_num_threads(1)
