"""How far reconstructions agree with exact answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from proa.codes import make_code
from proa.frontend.agreement import agreement
from proa.parity import decode_outputs


def share(members: Any, parity: Any, k: int = 2) -> float:
    code = make_code("sum", k, 1)
    arrays = [{"y": np.array(m, np.float32)} for m in members]
    row = {0: {"y": np.array(parity, np.float32)}}
    return agreement(arrays, row, lambda *args: decode_outputs(code, *args))


def test_an_exact_parity_agrees_everywhere() -> None:
    members = [[[1, 5, 2]], [[7, 0, 1]]]
    assert share(members, [[8, 5, 3]]) == 1.0


def test_classes_agree_when_the_largest_score_is_the_same() -> None:
    # Position 0 decodes to [[1, 3, 0]]: same class. Position 1 to [[7, -2, -1]]: same class.
    assert share([[[1, 5, 2]], [[7, 0, 1]]], [[8, 3, 1]]) == 1.0
    # Position 0 now decodes to [[9, 5, 2]]: another class; position 1 to [[15, 0, 1]].
    assert share([[[1, 5, 2]], [[7, 0, 1]]], [[16, 5, 3]]) == 0.5


def test_each_entry_of_a_batch_counts() -> None:
    members = [[[1, 2], [1, 2]], [[2, 1], [2, 1]]]
    # The first entry is exact; the second decodes to the other class at both positions.
    assert share(members, [[3, 3], [9, 0]]) == pytest.approx(0.5 + 0.25)


def test_a_regression_agrees_within_ten_percent() -> None:
    assert share([[[10.0]], [[20.0]]], [[30.5]]) == 1.0
    assert share([[[10.0]], [[20.0]]], [[31.5]]) == 0.5
    assert share([[[10.0]], [[20.0]]], [[35.0]]) == 0.0


def test_any_row_will_do_and_integers_are_compared_as_numbers() -> None:
    code = make_code("sum", 2, 2)
    members = [{"y": np.array([[3]], np.int64)}, {"y": np.array([[4]], np.int64)}]
    row = code.target(np.stack([m["y"] for m in members]), 1)
    found = agreement(members, {1: {"y": row}}, lambda *args: decode_outputs(code, *args))
    assert found == 1.0
