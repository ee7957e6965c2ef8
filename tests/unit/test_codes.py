"""The codes: golden vectors, every erasure set, layout, dtypes and refusals."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.codes import CODERS, K_MAX, R_MAX, Code, coefficients, make_code
from proa.errors import TooManyErasures, WrongGroup

GOLDEN = json.loads((Path(__file__).parent / "golden" / "codes.json").read_text())
SHAPE = tuple(GOLDEN["query_shape"])


def name_of(case: dict) -> str:
    return f"{case['coder']}-k{case['k']}-r{case['r']}"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name_of)
def test_golden_vectors(case: dict) -> None:
    code = make_code(case["coder"], case["k"], case["r"])
    np.testing.assert_array_equal(code.coefficients, case["coefficients"])
    queries = [np.array(q, np.float32).reshape(SHAPE) for q in case["queries"]]
    predictions = np.array(case["predictions"], np.float32)
    for row in range(code.r):
        parity = code.encode(queries, row)
        assert parity.shape == SHAPE
        np.testing.assert_array_equal(parity.ravel(), np.float32(case["parity_queries"][row]))
        np.testing.assert_array_equal(
            code.target(predictions, row), np.float32(case["targets"][row])
        )
    answers = {row: np.array(t, np.float32) for row, t in enumerate(case["targets"])}
    for missing in case["erasures"]:
        available = {i: p for i, p in enumerate(predictions) if i not in missing}
        found = code.decode(available, answers, missing)
        assert list(found) == missing
        for i in missing:
            np.testing.assert_allclose(found[i], predictions[i], atol=1e-5)


@pytest.mark.parametrize("rows", [rows for n in (1, 2, 3) for rows in combinations(range(3), n)])
def test_every_square_submatrix_can_be_solved(rows: tuple[int, ...]) -> None:
    full = coefficients("sum", K_MAX, R_MAX)
    for columns in combinations(range(K_MAX), len(rows)):
        inverse = np.linalg.inv(full[np.ix_(rows, columns)])
        assert np.linalg.norm(inverse, 2) < 22
    assert (full[0] == 1).all()


@st.composite
def erasures(draw: st.DrawFn) -> tuple[Code, tuple[int, ...], tuple[int, ...], int]:
    """A code, a set of erased positions, at least as many rows that arrived, a seed."""
    coder = draw(st.sampled_from(CODERS))
    k = 1 if coder == "replica" else draw(st.integers(2, K_MAX))
    r = 1 if coder == "mean" else draw(st.integers(1, R_MAX))
    size = draw(st.integers(0, min(r, k)))
    missing = draw(st.permutations(range(k)).map(lambda p: tuple(p[:size])))
    rows = draw(st.permutations(range(r)).map(tuple))
    arrived = rows[: draw(st.integers(size, r))]
    return make_code(coder, k, r), missing, arrived, draw(st.integers(0, 2**32 - 1))


@given(erasures())
def test_an_exact_linear_model_is_reconstructed_exactly(
    drawn: tuple[Code, tuple[int, ...], tuple[int, ...], int],
) -> None:
    code, missing, arrived, seed = drawn
    rng = np.random.default_rng(seed)
    weights = rng.integers(-3, 4, (6, 5)).astype(np.float32)
    queries = [rng.integers(-8, 9, (2, 6)).astype(np.float32) for _ in range(code.k)]
    answers = {j: code.encode(queries, j) @ weights for j in arrived}
    known = {i: q @ weights for i, q in enumerate(queries) if i not in missing}
    found = code.decode(known, answers, missing)
    assert set(found) == set(missing)
    for i in missing:
        assert found[i].dtype == np.float32
        np.testing.assert_allclose(found[i], queries[i] @ weights, atol=0.02)


@pytest.mark.parametrize("k", range(2, K_MAX + 1))
@pytest.mark.parametrize("r", [1, 2, 3])
def test_every_erasure_set_of_every_code(k: int, r: int) -> None:
    code = make_code("sum", k, r)
    values = np.random.default_rng(k * 10 + r).normal(size=(k, 3)).astype(np.float32)
    answers = {j: code.target(values, j) for j in range(r)}
    for size in range(1, min(r, k) + 1):
        for missing in combinations(range(k), size):
            known = {i: values[i] for i in range(k) if i not in missing}
            found = code.decode(known, answers, missing)
            np.testing.assert_allclose(
                [found[i] for i in missing], values[list(missing)], atol=1e-3
            )


def test_single_parity_is_the_subtraction_of_the_paper_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 10)).astype(np.float32)
    parity = rng.normal(size=(4, 10)).astype(np.float32)
    found = make_code("sum", 3, 1).decode({0: values[0], 2: values[2]}, {0: parity}, [1])
    np.testing.assert_array_equal(found[1], parity - values[0] - values[2])


def test_colour_channels_stay_apart() -> None:
    """Trap T1: the released code views [k, 3HW] as [3, k, HW], which mixes R of one with G."""
    colours = np.random.default_rng(1).normal(size=(2, 5, 3, 4, 6)).astype(np.float32)
    parity = make_code("sum", 2, 1).encode(list(colours), 0)
    for image in range(5):
        for channel in range(3):
            expected = colours[0, image, channel] + colours[1, image, channel]
            np.testing.assert_array_equal(parity[image, channel], expected)
    interleaved = colours.swapaxes(0, 1).reshape(5, 3, 2, 24).sum(2).reshape(5, 3, 4, 6)
    assert not np.allclose(parity, interleaved)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64", "bfloat16"])
def test_sums_are_fp32_whatever_comes_in(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    queries = [np.full((1, 4), 200).astype(kind), np.full((1, 4), 101).astype(kind)]
    parity = make_code("sum", 2, 1).encode(queries, 0)
    assert parity.dtype == np.float32
    np.testing.assert_array_equal(parity, np.full((1, 4), 301, np.float32))


def test_encoding_leaves_its_inputs_alone() -> None:
    queries = [np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)]
    code = make_code("sum", 2, 1)
    code.encode(queries, 0)
    code.decode({0: queries[0]}, {0: queries[1]}, [1])
    assert all((q == 1).all() for q in queries)


def test_rows_keep_their_coefficients_when_r_grows() -> None:
    np.testing.assert_array_equal(coefficients("sum", 4, 1), coefficients("sum", 4, 3)[:1])


def test_mean_asks_the_deployed_model_about_the_mean() -> None:
    code = make_code("mean", 4, 1)
    queries = [np.full((1, 2), float(i)) for i in range(4)]
    np.testing.assert_array_equal(code.encode(queries, 0), np.full((1, 2), 1.5))
    known = {i: queries[i] for i in (0, 1, 3)}
    np.testing.assert_allclose(code.decode(known, {0: np.full((1, 2), 1.5)}, [2])[2], 2.0)


def test_replica_answers_with_the_first_replica_to_the_bit() -> None:
    code = make_code("replica", 1, 3)
    answer = np.random.default_rng(2).normal(size=(1, 10)).astype(np.float32)
    found = code.decode({}, {2: answer, 1: answer}, [0])
    np.testing.assert_array_equal(found[0], answer)


def test_ids_tell_codes_apart() -> None:
    assert make_code("sum", 2, 1).id == "sum-k2-r1-v1"
    assert make_code("mean", 2, 1).id != make_code("sum", 2, 1).id


ONE = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("coder", "k", "r", "message"),
    [
        ("xor", 2, 1, "coder 'xor' is not one of"),
        ("sum", 1, 1, "k 1: coder sum takes a k from 2 to 16"),
        ("sum", 17, 1, "k 17"),
        ("sum", 2, 4, "r 4: coder sum takes an r from 1 to 3"),
        ("mean", 2, 2, "r 2: coder mean takes an r from 1 to 1"),
        ("replica", 2, 1, "k 2: coder replica takes a k from 1 to 1"),
    ],
)
def test_impossible_codes_are_refused(coder: str, k: int, r: int, message: str) -> None:
    with pytest.raises(WrongGroup, match=message):
        make_code(coder, k, r)


@pytest.mark.parametrize(
    ("queries", "row", "message"),
    [
        ([ONE], 0, "has 2 queries, not 1"),
        ([ONE, ONE], 1, "row 1: sum-k2-r1-v1 has rows 0 to 0"),
        ([ONE, np.ones((2, 4))], 0, r"query 1 has shape \(2, 4\)"),
        ([ONE, np.full((1, 4), np.nan)], 0, "query 1 holds NaN or Inf"),
        ([np.full((1, 4), np.inf), ONE], 0, "query 0 holds NaN or Inf"),
        ([np.full((1, 4), 3e38)] * 2, 0, "overflows"),
        ([np.full((1, 4), 1e300), ONE], 0, "query 0 holds NaN or Inf"),
        ([ONE, np.array([[b"a"] * 4])], 0, "only real numbers"),
        ([ONE, np.array([[None] * 4])], 0, "only real numbers"),
        ([ONE, np.ones((1, 4), bool)], 0, "only real numbers"),
        ([ONE, np.ones((1, 4), complex)], 0, "only real numbers"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries: list, row: int, message: str) -> None:
    with pytest.raises(WrongGroup, match=message):
        make_code("sum", 2, 1).encode(queries, row)


@pytest.mark.parametrize(
    ("available", "parity", "missing", "error", "message"),
    [
        ({}, {0: ONE}, [0, 1], TooManyErasures, "2 predictions of a sum-k2-r1-v1 group"),
        ({0: ONE}, {}, [1], TooManyErasures, "0 parity rows"),
        ({0: ONE}, {0: ONE}, [0], WrongGroup, "positions 0 to 1, each once"),
        ({0: ONE}, {0: ONE}, [], WrongGroup, "positions 0 to 1, each once"),
        ({0: ONE}, {0: ONE}, [2], WrongGroup, "positions 0 to 1, each once"),
        ({0: ONE}, {3: ONE}, [1], WrongGroup, "row 3"),
        ({0: ONE}, {0: np.ones((1, 3))}, [1], WrongGroup, r"parity row 0 has shape \(1, 3\)"),
        ({0: np.full((1, 4), np.nan)}, {0: ONE}, [1], WrongGroup, "prediction 0 holds NaN"),
        ({0: ONE}, {0: np.full((1, 4), -np.inf)}, [1], WrongGroup, "parity row 0 holds NaN"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    available: dict, parity: dict, missing: list, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        make_code("sum", 2, 1).decode(available, parity, missing)


def test_nothing_missing_is_nothing_to_do() -> None:
    assert make_code("sum", 2, 1).decode({0: ONE, 1: ONE}, {}, []) == {}
