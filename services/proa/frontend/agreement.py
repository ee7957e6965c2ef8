"""How far a reconstruction agrees with the exact answer that came after all (parm facts F10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from proa.frontend.queries import Tensors

REGRESSION_ERROR_MAX = 0.1

Decode = Callable[
    [Mapping[int, Tensors], Mapping[int, Tensors], Sequence[int]], Mapping[int, Tensors]
]


def agreement(members: Sequence[Tensors], parity: Mapping[int, Tensors], decode: Decode) -> float:
    """The share of (position, batch entry, output) whose reconstruction agrees, 0 to 1.

    members: the exact predictions in position order; each position is erased in turn and decoded
    from the others and one parity row. Agreement: the same argmax over the last axis where that has
    two entries or more, else a relative error of at most 10 %.
    """
    row = next(iter(parity))
    agreed: list[NDArray[np.bool_]] = []
    for position, exact in enumerate(members):
        others = {i: one for i, one in enumerate(members) if i != position}
        found = decode(others, {row: parity[row]}, [position])[position]
        agreed += [_agrees(found[name], array) for name, array in exact.items()]
    return float(np.concatenate([a.ravel() for a in agreed]).mean())


def _agrees(found: NDArray[np.float32], exact: NDArray[np.generic]) -> NDArray[np.bool_]:
    want = exact.astype(np.float32)
    if want.ndim > 1 and want.shape[-1] > 1:
        same: NDArray[np.bool_] = found.argmax(-1) == want.argmax(-1)
        return same
    scale = np.maximum(np.abs(want), np.finfo(np.float32).tiny)
    close: NDArray[np.bool_] = np.abs(found - want) <= REGRESSION_ERROR_MAX * scale
    return close
