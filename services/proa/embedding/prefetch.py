"""Batches whose rows are pulled while the batch before is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

from proa.embedding.bag import ParityEmbeddingBag, pull_ahead

Batch = TypeVar("Batch")
# Which ids a batch asks of which table.
Inputs = Callable[[Batch], Iterable[tuple[ParityEmbeddingBag, torch.Tensor]]]


class PrefetchIter(Generic[Batch]):
    """`for batch in PrefetchIter(loader, inputs)`: while a batch is worked on, the rows of the next
    one come, those of all tables together. What a step changes is pulled again, so the results are
    those without prefetching, as long as nobody else pushes to these rows: see `pull_ahead`."""

    def __init__(self, batches: Iterable[Batch], inputs: Inputs[Batch]) -> None:
        self._batches, self._inputs = batches, inputs

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[Batch] = []
        for batch in self._batches:
            pull_ahead(self._inputs(batch))
            if waiting:
                yield waiting.pop()
            waiting.append(batch)
        yield from waiting
