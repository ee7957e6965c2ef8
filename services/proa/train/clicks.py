"""Clicks from a planted model: data that a recommender can really learn, from a seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DENSE = 13
# Of the planted model's logits: at 2.5 the best possible loss is about 0.4, of guessing 0.69.
SCALE = 2.5
ZIPF = 1.05


@dataclass(frozen=True)
class Clicks:
    """One batch: `dense` float32 [n, 13], `ids` int64 [tables, n], `labels` float32 [n], 0 or 1."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    labels: NDArray[np.float32]


class PlantedClicks:
    """Batches by (worker, step), the same whenever they are asked for.

    rows: of each table. Id i of a table is as frequent as (i + 1)^-1.05, and has a hidden score; a
    label is drawn from the sigmoid of the scores' sum and of a product with the dense features.
    """

    def __init__(self, rows: Sequence[int], *, seed: int, batch: int) -> None:
        self._seed, self._batch = seed, batch
        draw = np.random.default_rng((seed, 0))
        self._scores = [draw.standard_normal(count) for count in rows]
        self._along = draw.standard_normal(DENSE)
        self._shares = []
        for count in rows:
            weights = np.arange(1, count + 1, dtype=np.float64) ** -ZIPF
            self._shares.append(np.cumsum(weights) / weights.sum())

    def batch(self, worker: int, step: int) -> Clicks:
        """What `worker` trains on in `step`."""
        draw = np.random.default_rng((self._seed, 1, worker, step))
        dense = draw.standard_normal((self._batch, DENSE))
        uniform = draw.random((len(self._scores), self._batch))
        ids = np.array(
            [
                np.searchsorted(shares[:-1], one, side="right")
                for shares, one in zip(self._shares, uniform, strict=True)
            ]
        )
        scores = sum(score[one] for score, one in zip(self._scores, ids, strict=True))
        total = scores / np.sqrt(len(ids)) + dense @ self._along / np.sqrt(DENSE)
        clicked = draw.random(self._batch) < 1.0 / (1.0 + np.exp(-SCALE * total / np.sqrt(2.0)))
        return Clicks(dense.astype(np.float32), ids.astype(np.int64), clicked.astype(np.float32))
