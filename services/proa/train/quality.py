"""How good are reconstructions: available, degraded and overall accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.codes import Code
from proa.errors import WrongGroup
from proa.train.program import Array, Arrays, Predict

LOSSES = (0.01, 0.05, 0.10)
REPEATS = 5


@dataclass(frozen=True)
class Quality:
    """Shares from 0 to 1. Accuracies are NaN without labels (they need one label a query).

    `available`: A_a, the deployed model's accuracy. `default`: of always answering the most
    frequent class. The tuples have one entry for each number of lost predictions, 1 to r:
    `degraded`: A_d; `agreement`: same class as the deployed model; `error`: root mean square of
    the reconstruction error over the deviation of the outputs. `by_position`: A_d of one loss (or
    the agreement, without labels), per position. `overall`: loss rate -> A_o.
    """

    code: str
    queries: int
    groups: int
    available: float
    default: float
    degraded: tuple[float, ...]
    agreement: tuple[float, ...]
    error: tuple[float, ...]
    by_position: tuple[float, ...]
    overall: Mapping[float, float]

    def as_json(self) -> dict[str, Any]:
        """Plain types; NaN is null."""
        return {name: _plain(value) for name, value in vars(self).items()}


def recoverable(k: int, r: int, loss: float) -> float:
    """P(a lost prediction can be reconstructed): at most r - 1 of the other k + r - 1 answers
    of its group are lost too, each independently with probability `loss`."""
    return sum(_others_lost(k, r, loss, j) for j in range(r))


def overall_accuracy(
    k: int, r: int, loss: float, available: float, degraded: Sequence[float], default: float
) -> float:
    """A_o = (1 - f) A_a + f [sum_j P(j others lost) A_d(j + 1) + (1 - p) A_default].

    ParM's equation 1 with its coverage p: a prediction whose group lost more than r answers gets
    a default. Counts every other loss as a prediction's, where it may be a parity row's.
    """
    assert len(degraded) == r
    covered = [_others_lost(k, r, loss, j) for j in range(r)]
    saved = sum(p * a for p, a in zip(covered, degraded, strict=True))
    return (1 - loss) * available + loss * (saved + (1 - sum(covered)) * default)


def _others_lost(k: int, r: int, loss: float, j: int) -> float:
    n = k + r - 1
    return math.comb(n, j) * loss**j * (1 - loss) ** (n - j)


def evaluate(
    code: Code,
    queries: Arrays,
    predict: Predict,
    parity: Mapping[int, Predict],
    *,
    labels: Array | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Quality:
    """Every group of `repeats` random partitions, every set of positions that can be solved erased.

    queries: name -> [n, ...]; predict: the deployed model; parity: row -> its model, for all
    rows of the code or some; labels [n], compared with the largest entry of the first output.
    Errors: WrongGroup.
    """
    if not parity:
        raise WrongGroup(f"{code.id}: no parity model is given")
    predictions = predict(queries)
    n = len(next(iter(predictions.values())))
    if n < code.k:
        raise WrongGroup(f"{n} queries make no group of {code.k}")
    rng = np.random.default_rng(seed)
    main = next(iter(predictions))
    tally = _Tally(code, len(parity), predictions[main], labels)
    for _ in range(repeats):
        groups = rng.permutation(n)[: n // code.k * code.k].reshape(-1, code.k)
        answers = {
            row: model(encode_groups(code, row, queries, groups))[main]
            for row, model in parity.items()
        }
        tally.add(groups, answers)
    return tally.quality()


def encode_groups(
    code: Code, row: int, queries: Arrays, groups: NDArray[np.int64]
) -> dict[str, Array]:
    """The parity queries of `row` for groups [g, k] of indices into `queries`: name -> [g, ...]."""
    return {
        name: code.encode([value[groups[:, i]] for i in range(code.k)], row)
        for name, value in queries.items()
    }


@dataclass
class _Count:
    values: int = 0
    same: int = 0
    right: int = 0
    square: float = 0.0
    elements: int = 0


@dataclass
class _Tally:
    code: Code
    rows: int
    predictions: Array
    labels: Array | None
    groups: int = 0
    counts: dict[tuple[int, int], _Count] = field(default_factory=dict)

    def add(self, groups: NDArray[np.int64], answers: Mapping[int, Array]) -> None:
        """Erase, decode and compare; `answers`: row -> [g, ...]."""
        self.groups += len(groups)
        for size in range(1, min(self.rows, self.code.k) + 1):
            for missing in combinations(range(self.code.k), size):
                known = {
                    i: self.predictions[groups[:, i]]
                    for i in range(self.code.k)
                    if i not in missing
                }
                for i, value in self.code.decode(known, answers, missing).items():
                    self._compare(self.counts.setdefault((size, i), _Count()), groups[:, i], value)

    def _compare(self, count: _Count, which: NDArray[np.int64], value: Array) -> None:
        truth, chosen = self.predictions[which], value.argmax(-1)
        count.values += chosen.size
        count.same += int((chosen == truth.argmax(-1)).sum())
        if self.labels is not None:
            count.right += int((chosen == self.labels[which]).sum())
        count.square += float(np.square(value - truth, dtype=np.float64).sum())
        count.elements += value.size

    def quality(self) -> Quality:
        k, r = self.code.k, self.rows
        sizes = range(1, min(r, k) + 1)
        total = {size: _summed([self.counts[size, i] for i in range(k)]) for size in sizes}
        labelled = self.labels is not None
        deviation = float(self.predictions.std()) or 1.0
        available, default = self._available()
        degraded = [c.right / c.values if labelled else math.nan for c in total.values()]
        # With fewer positions than rows, more losses than positions cannot happen.
        padded = [*degraded, *degraded[-1:] * (r - len(degraded))]
        one = [self.counts[1, i] for i in range(k)]
        return Quality(
            code=self.code.id,
            queries=len(self.predictions),
            groups=self.groups,
            available=available,
            default=default,
            degraded=tuple(degraded),
            agreement=tuple(c.same / c.values for c in total.values()),
            error=tuple(math.sqrt(c.square / c.elements) / deviation for c in total.values()),
            by_position=tuple((c.right if labelled else c.same) / c.values for c in one),
            overall={f: overall_accuracy(k, r, f, available, padded, default) for f in LOSSES},
        )

    def _available(self) -> tuple[float, float]:
        if self.labels is None:
            return math.nan, math.nan
        right = float((self.predictions.argmax(-1) == self.labels).mean())
        _, counts = np.unique(self.labels, return_counts=True)
        return right, float(counts.max() / counts.sum())


def _summed(counts: Sequence[_Count]) -> _Count:
    names = vars(_Count())
    return _Count(**{name: sum(getattr(c, name) for c in counts) for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
