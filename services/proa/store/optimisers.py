"""Optimisers of the owners: fp32, row by row, the same bits for the same arguments everywhere.

Only IEEE operations element by element, and sums in an order that is written down; no pow, no BLAS.
Rows that a push does not name do not change: no weight decay, and momentum moves a row only when
it gets a gradient (lazy). Defaults and formulas are those of torch.optim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest
from proa.store.initial import Floats, Ids

Stepped = tuple[Floats, Floats]  # weights, state


def _number(owner: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise InvalidRequest(f"{owner}.{name} = {value} is not from {low:g} to below {high:g}")


@dataclass(frozen=True, slots=True)
class SGD:
    """w -= learning_rate g."""

    kind: ClassVar[str] = "sgd"
    learning_rate: float

    def __post_init__(self) -> None:
        _number(self.kind, "learning_rate", self.learning_rate, 0, 1e30)

    def state_floats(self, _dim: int) -> int:
        """Floats of state beside a row's weights."""
        return 0

    def initial_state(self, dim: int) -> Floats:
        """float32 [state_floats]."""
        return np.zeros(self.state_floats(dim), np.float32)

    def step(self, weights: Floats, state: Floats, gradients: Floats) -> Stepped:
        """float32 [rows, dim] and [rows, state_floats] after one step."""
        return weights - np.float32(self.learning_rate) * gradients, state


@dataclass(frozen=True, slots=True)
class Momentum:
    """b = momentum b + g; w -= learning_rate b, or with nesterov g + momentum b."""

    kind: ClassVar[str] = "momentum"
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _number(self.kind, "learning_rate", self.learning_rate, 0, 1e30)
        _number(self.kind, "momentum", self.momentum, 0, 1)

    def state_floats(self, dim: int) -> int:
        return dim

    def initial_state(self, dim: int) -> Floats:
        return np.zeros(dim, np.float32)

    def step(self, weights: Floats, state: Floats, gradients: Floats) -> Stepped:
        share = np.float32(self.momentum)
        buffer = share * state + gradients
        along = gradients + share * buffer if self.nesterov else buffer
        return weights - np.float32(self.learning_rate) * along, buffer


@dataclass(frozen=True, slots=True)
class Adagrad:
    """a += g g; w -= learning_rate g / (sqrt(a) + eps)."""

    kind: ClassVar[str] = "adagrad"
    learning_rate: float
    eps: float = 1e-10
    initial_accumulator: float = 0.0

    def __post_init__(self) -> None:
        _number(self.kind, "learning_rate", self.learning_rate, 0, 1e30)
        _number(self.kind, "eps", self.eps, 0, 1e30)
        _number(self.kind, "initial_accumulator", self.initial_accumulator, 0, 1e30)

    def state_floats(self, dim: int) -> int:
        return dim

    def initial_state(self, dim: int) -> Floats:
        return np.full(self.state_floats(dim), self.initial_accumulator, np.float32)

    def accumulated(self, gradients: Floats) -> Floats:
        """What one step adds to the state."""
        return gradients * gradients

    def step(self, weights: Floats, state: Floats, gradients: Floats) -> Stepped:
        state = state + self.accumulated(gradients)
        along = _divided(gradients, np.sqrt(state) + np.float32(self.eps))
        return weights - np.float32(self.learning_rate) * along, state


@dataclass(frozen=True, slots=True)
class RowWiseAdagrad(Adagrad):
    """Adagrad with one accumulator per row: the mean of g g over its columns."""

    kind: ClassVar[str] = "row_wise_adagrad"

    def state_floats(self, _dim: int) -> int:
        return 1

    def accumulated(self, gradients: Floats) -> Floats:
        squares = gradients * gradients
        return _row_sums(squares) / np.float32(gradients.shape[1])


@dataclass(frozen=True, slots=True)
class LazyAdam:
    """Adam whose moments and step count belong to the row: they move when it gets a gradient."""

    kind: ClassVar[str] = "lazy_adam"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _number(self.kind, "learning_rate", self.learning_rate, 0, 1e30)
        _number(self.kind, "beta1", self.beta1, 0, 1)
        _number(self.kind, "beta2", self.beta2, 0, 1)
        _number(self.kind, "eps", self.eps, 0, 1e30)

    def state_floats(self, dim: int) -> int:
        """Two moments, and the step as the bits of a uint32."""
        return 2 * dim + 1

    def initial_state(self, dim: int) -> Floats:
        return np.zeros(self.state_floats(dim), np.float32)

    def step(self, weights: Floats, state: Floats, gradients: Floats) -> Stepped:
        dim = gradients.shape[1]
        count = np.ascontiguousarray(state[:, 2 * dim :]).view(np.uint32) + np.uint32(1)
        first, second = np.float32(self.beta1), np.float32(self.beta2)
        mean = first * state[:, :dim] + np.float32(1 - self.beta1) * gradients
        square = second * state[:, dim : 2 * dim] + np.float32(1 - self.beta2) * (
            gradients * gradients
        )
        rate, scale = self._corrections(count[:, 0])
        below = np.sqrt(square) / scale + np.float32(self.eps)
        return weights - rate * _divided(mean, below), np.hstack(
            (mean, square, count.view(np.float32))
        )

    def _corrections(self, count: NDArray[np.uint32]) -> tuple[Floats, Floats]:
        """Per row learning_rate / (1 - beta1^t) and sqrt(1 - beta2^t): [rows, 1]."""
        steps, where = np.unique(count, return_inverse=True)
        found = [(_power(self.beta1, t), _power(self.beta2, t)) for t in steps.tolist()]
        rates = np.array([self.learning_rate / (1 - b1) for b1, _ in found])
        scales = np.sqrt(np.array([1 - b2 for _, b2 in found]))
        return (
            rates.astype(np.float32)[where].reshape(-1, 1),
            scales.astype(np.float32)[where].reshape(-1, 1),
        )


Optimiser = SGD | Momentum | Adagrad | RowWiseAdagrad | LazyAdam
OPTIMISERS: dict[str, type[Optimiser]] = {
    one.kind: one for one in (SGD, Momentum, Adagrad, RowWiseAdagrad, LazyAdam)
}


def to_json(optimiser: Optimiser) -> dict[str, Any]:
    return {"kind": optimiser.kind, **asdict(optimiser)}


def from_json(value: Mapping[str, Any]) -> Optimiser:
    """Errors: InvalidRequest for an unknown kind or hyperparameter."""
    given = dict(value)
    kind = given.pop("kind", None)
    if kind not in OPTIMISERS:
        raise InvalidRequest(f"optimiser.kind = {kind!r} is none of {', '.join(OPTIMISERS)}")
    try:
        return OPTIMISERS[kind](**given)
    except TypeError as exc:
        raise InvalidRequest(f"optimiser {kind}: {exc}") from exc


def _divided(above: Floats, below: Floats) -> Floats:
    """Where the divisor is 0 (eps = 0, no gradient ever) the row stays."""
    some = below != 0
    if some.all():
        found: Floats = above / below
        return found
    return np.divide(above, below, out=np.zeros_like(above), where=some)


def _power(base: float, exponent: int) -> float:
    """By multiplications: the same bits everywhere, as those of pow need not be."""
    total = 1.0
    while exponent:
        if exponent & 1:
            total *= base
        base *= base
        exponent >>= 1
    return total


def _row_sums(values: Floats) -> Floats:
    """Sums over columns, [rows, 1], halving: an order that no vector unit changes."""
    while (columns := values.shape[1]) > 1:
        half = (columns + 1) // 2
        if columns % 2 == 0:
            values = values[:, :half] + values[:, half:]
        else:
            values = np.hstack(
                (values[:, : half - 1] + values[:, half:], values[:, half - 1 : half])
            )
    return values


# --- gradients on their way


def sum_duplicates(ids: Ids, gradients: Floats) -> tuple[Ids, Floats]:
    """Ascending unique ids, and per id the sum of its rows of `gradients` in the order in which
    they come: any other order would give other bits. A sum that overflows is for
    `check_gradients` to refuse, by name."""
    unique, inverse = np.unique(ids, return_inverse=True)
    if len(unique) == len(ids):
        sums = np.empty_like(gradients, np.float32)
        sums[inverse] = gradients
        return unique, sums
    sums = np.zeros((len(unique), gradients.shape[1]), np.float32)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
    counts = np.diff(starts)
    # The n-th occurrences of all ids at a time, while that is many.
    with np.errstate(over="ignore", invalid="ignore"):
        for turn in range(int(counts.max())):
            has = np.flatnonzero(counts > turn)
            sums[has] += gradients[order[starts[has] + turn]]
    return unique, sums


def check_gradients(table: str, ids: Ids, gradients: Floats) -> None:
    """Errors: InvalidRequest, which names the table and the first ids with NaN or Inf."""
    bad = ids[~np.isfinite(gradients).all(axis=1)]
    if len(bad):
        shown = ", ".join(map(str, bad[:8].tolist())) + (", ..." if len(bad) > 8 else "")
        raise InvalidRequest(
            f"table {table!r}: NaN or Inf in the gradients of {len(bad)} rows: ids {shown}"
        )
