"""The coefficients C (r x k) of each coder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proa.errors import WrongGroup

CODERS = ("sum", "mean", "replica")
K_MAX = 16
R_MAX = 3

# One column a position, one line a parity row; every k uses a prefix, so that raising r keeps the
# parity programs of the rows before it.
# Row 0 is the sum of ParM (SOSP'19, 4.2). The rows below it must differ per position on the input
# side too: no model can tell the members of a symmetric sum apart.
# Found by a greedy search over multiples of 0.5 up to 5 (up to 2 for the first four, where parity
# models are accurate enough to be of use): no square submatrix is singular, and the largest
# 2-norm of an inverse, which multiplies the error of the parity models, is 3.6 for k = 4 and
# 21 for k = 16 (277 for the Vandermonde matrix on 1..16).
_SUM = (
    (1.0,) * K_MAX,
    (1.0, -1.0, -2.0, 2.0, -3.5, 5.0, 0.5, -5.0, -0.5, 3.0, 4.0, -2.5, 2.5, -4.0, 1.5, -4.5),
    (1.0, 0.5, -1.0, -2.0, 5.0, -0.5, -5.0, -3.5, 3.5, 4.0, -3.0, 2.0, -4.5, 4.5, -2.5, -4.0),
)


def coefficients(coder: str, k: int, r: int) -> NDArray[np.float64]:
    """C (r, k), read-only float64: row j of a group holds sum_i C[j, i] x_i.

    Every set of at most r erased positions can be solved from any as many rows.
    Errors: WrongGroup names the field and its limit.
    """
    _check(coder, k, r)
    if coder == "sum":
        found = np.array(_SUM, dtype=np.float64)[:r, :k].copy()
    elif coder == "mean":
        found = np.full((1, k), 1.0 / k)
    else:
        found = np.ones((r, 1))
    found.flags.writeable = False
    return found


def _check(coder: str, k: int, r: int) -> None:
    if coder not in CODERS:
        raise WrongGroup(f"coder {coder!r} is not one of {', '.join(CODERS)}")
    low, high = (1, 1) if coder == "replica" else (2, K_MAX)
    if not low <= k <= high:
        raise WrongGroup(f"k {k}: coder {coder} takes a k from {low} to {high}")
    rows = 1 if coder == "mean" else R_MAX
    if not 1 <= r <= rows:
        raise WrongGroup(f"r {r}: coder {coder} takes an r from 1 to {rows}")
