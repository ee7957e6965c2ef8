"""One code: encode queries into parity queries, decode erased predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.codes.coefficients import coefficients
from proa.errors import TooManyErasures, WrongGroup

VERSION = 1

Array = NDArray[Any]
Floats = NDArray[np.float32]


def make_code(coder: str, k: int, r: int) -> Code:
    """The code of `coder` (sum, mean, replica) over k positions with r parity rows.

    Errors: WrongGroup names the field and its limit.
    """
    return Code(coder, k, r, coefficients(coder, k, r))


@dataclass(frozen=True, eq=False)
class Code:
    """A linear code over groups of k queries; make one with `make_code`.

    Tensors keep their shape: position i of the group is one array [b, ...] and so is every parity
    row, added element by element; images are never flattened or interleaved. All arithmetic is
    fp32 in position order, so the same inputs give the same bits everywhere.
    """

    coder: str
    k: int
    r: int
    coefficients: NDArray[np.float64]

    @property
    def id(self) -> str:
        """Names code and arithmetic, as in `sum-k2-r1-v1`; part of the package hash."""
        return f"{self.coder}-k{self.k}-r{self.r}-v{VERSION}"

    def encode(self, queries: Sequence[Array], row: int) -> Floats:
        """The parity query of `row`: sum_i C[row, i] queries[i].

        queries: k arrays of one shape (batch axis included) and any real dtype, in position order.
        Returns fp32 of that shape. Errors: WrongGroup (count, shape, dtype, NaN or Inf, row).
        """
        if len(queries) != self.k:
            raise WrongGroup(f"a group of {self.id} has {self.k} queries, not {len(queries)}")
        members = [_floats(query, f"query {i}") for i, query in enumerate(queries)]
        _same_shapes({f"query {i}": query for i, query in enumerate(members)})
        found = self._combine(members, row)
        _finite(found, {f"query {i}": query for i, query in enumerate(members)})
        return found

    def target(self, predictions: Array, row: int) -> Floats:
        """What the parity model of `row` must answer: sum_i C[row, i] predictions[i].

        predictions: (k, ...), the deployed model's outputs. Returns fp32 (...).
        Errors: WrongGroup.
        """
        return self.encode(list(predictions), row)

    def decode(
        self, available: Mapping[int, Array], parity: Mapping[int, Array], missing: Sequence[int]
    ) -> dict[int, Floats]:
        """The predictions of the positions in `missing`, from those in `available` and `parity`.

        available: position -> prediction; parity: row -> output of that row's parity model; all
        of one shape. Solves C[R, L] Y_L = p_R - C[R, A] y_A, by least squares where there are
        more rows R than erasures L. Returns position -> fp32 of the same shape.
        Errors: TooManyErasures; WrongGroup (positions, rows, shape, dtype, NaN or Inf).
        """
        self._check_positions(available, missing)
        if len(missing) > len(parity):
            raise TooManyErasures(
                f"{len(missing)} predictions of a {self.id} group are missing and"
                f" {len(parity)} parity rows arrived"
            )
        if not missing:
            return {}
        rows = self._usable_rows(parity)
        known = {i: _floats(available[i], f"prediction {i}") for i in sorted(available)}
        answers = {j: _floats(parity[j], f"parity row {j}") for j in rows}
        named = {f"prediction {i}": value for i, value in known.items()}
        named |= {f"parity row {j}": value for j, value in answers.items()}
        _same_shapes(named)
        rest = [self._without(known, answers[j], j) for j in rows]
        solve = _solver(self.coder, self.k, self.r, tuple(rows), tuple(missing))
        found = {i: _weighted(rest, weights) for i, weights in zip(missing, solve, strict=True)}
        for value in found.values():
            _finite(value, named)
        return found

    def _combine(self, members: Sequence[Floats], row: int) -> Floats:
        self._check_row(row)
        return _weighted(members, self.coefficients[row])

    def _without(self, known: Mapping[int, Floats], answer: Floats, row: int) -> Floats:
        """`answer` of parity row `row` less the share of the known predictions."""
        found = answer.copy()
        with _quiet():
            for i, value in known.items():
                found -= np.float32(self.coefficients[row, i]) * value
        return found

    def _usable_rows(self, parity: Mapping[int, Array]) -> list[int]:
        for row in parity:
            self._check_row(row)
        rows = sorted(parity)
        # Replicas answer the same question: the first answers it, an average would blur it.
        return rows[:1] if self.coder == "replica" else rows

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.r:
            raise WrongGroup(f"row {row}: {self.id} has rows 0 to {self.r - 1}")

    def _check_positions(self, available: Mapping[int, Array], missing: Sequence[int]) -> None:
        given = sorted([*available, *missing])
        if given != list(range(self.k)):
            raise WrongGroup(
                f"available {sorted(available)} and missing {sorted(missing)} must be the"
                f" positions 0 to {self.k - 1}, each once"
            )


@lru_cache(maxsize=1024)
def _solver(
    coder: str, k: int, r: int, rows: tuple[int, ...], missing: tuple[int, ...]
) -> NDArray[np.float64]:
    """(missing, rows): the (pseudo)inverse of C[rows, missing]; kept, as it costs more than the
    sums of a small prediction."""
    return np.linalg.pinv(coefficients(coder, k, r)[np.ix_(rows, missing)])


def _weighted(terms: Sequence[Floats], weights: NDArray[np.float64]) -> Floats:
    """sum_i weights[i] terms[i] in fp32, added in order."""
    with _quiet():
        found = np.float32(weights[0]) * terms[0]
        for weight, term in zip(weights[1:], terms[1:], strict=True):
            found += np.float32(weight) * term
    assert found.dtype == np.float32
    return found


def _floats(value: Array, what: str) -> Floats:
    """`value` as fp32: uint8 sums overflow and bf16 sums lose the digits a decoder needs."""
    array = np.asarray(value)
    # ml_dtypes registers bfloat16 with kind 'V'.
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise WrongGroup(f"{what} has dtype {array.dtype}: only real numbers can be coded")
    with _quiet():
        return array.astype(np.float32, copy=False)


def _quiet() -> AbstractContextManager[None]:
    """Overflow shows as Inf, which `_finite` reports with the name of the tensor."""
    return np.errstate(over="ignore", invalid="ignore")


def _same_shapes(named: Mapping[str, Floats]) -> None:
    first, *others = named
    for name in others:
        if named[name].shape != named[first].shape:
            raise WrongGroup(
                f"{name} has shape {named[name].shape}, {first} has {named[first].shape}:"
                " the members of a group have one shape"
            )


def _finite(found: Floats, named: Mapping[str, Floats]) -> None:
    """One NaN or Inf would poison the answers of the whole group: name whose it is."""
    if np.isfinite(found).all():
        return
    for name, value in named.items():
        if not np.isfinite(value).all():
            raise WrongGroup(f"{name} holds NaN or Inf")
    raise WrongGroup("the sum of the group overflows fp32")
