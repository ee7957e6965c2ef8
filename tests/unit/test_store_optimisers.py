"""The owners' optimisers against torch.optim, and what they promise beyond it: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proa.errors import InvalidRequest
from proa.store.optimisers import (
    OPTIMISERS,
    SGD,
    Adagrad,
    LazyAdam,
    Momentum,
    Optimiser,
    RowWiseAdagrad,
    check_gradients,
    from_json,
    sum_duplicates,
    to_json,
)

STEPS, ROWS, DIM = 12, 6, 5
TORCH = {
    "sgd": (SGD(0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
    "nesterov": (
        Momentum(0.1, 0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    "adagrad": (
        Adagrad(0.5, eps=1e-6, initial_accumulator=0.25),
        lambda p: torch.optim.Adagrad(p, lr=0.5, eps=1e-6, initial_accumulator_value=0.25),
    ),
    "lazy_adam": (LazyAdam(0.02), lambda p: torch.optim.Adam(p, lr=0.02)),
    "sparse_adam": (
        LazyAdam(0.02, beta1=0.7, beta2=0.9),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9)),
    ),
}


def gradients(seed: int, steps: int = STEPS, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, ROWS, dim)).astype(np.float32)


def play(optimiser: Optimiser, weights: np.ndarray, some: np.ndarray) -> list[np.ndarray]:
    state = np.tile(optimiser.initial_state(weights.shape[1]), (len(weights), 1))
    found = []
    for one in some:
        weights, state = optimiser.step(weights, state, one)
        assert (weights.dtype, state.dtype) == (np.float32, np.float32)
        assert state.shape[1] == optimiser.state_floats(weights.shape[1])
        found.append(weights)
    return found


@pytest.mark.parametrize("name", TORCH)
def test_steps_are_those_of_torch(name: str):
    optimiser, make = TORCH[name]
    start = gradients(1, 1)[0]
    some = gradients(2)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = make([weight])
    for ours, gradient in zip(play(optimiser, start, some), some, strict=True):
        weight.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=3e-6, atol=3e-7)


def test_row_wise_adagrad_is_adagrad_on_the_mean_of_squares():
    some, start = gradients(3), gradients(1, 1)[0]
    found = play(RowWiseAdagrad(0.5, eps=1e-6), start, some)
    total, weights = torch.zeros(ROWS, 1), torch.from_numpy(start)
    for ours, gradient in zip(found, map(torch.from_numpy, some), strict=True):
        total = total + (gradient**2).mean(dim=1, keepdim=True)
        weights = weights - 0.5 * gradient / (total.sqrt() + 1e-6)
        np.testing.assert_allclose(ours, weights.numpy(), rtol=3e-6, atol=3e-7)
    narrow = gradients(4, dim=1)
    pair = [play(one(0.5), narrow[0], narrow) for one in (RowWiseAdagrad, Adagrad)]
    assert (np.array(pair[0]) == np.array(pair[1])).all()


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("dim", [1, 7, 64])
def test_a_row_gets_the_same_bits_whatever_rows_are_beside_it(kind: str, dim: int):
    optimiser = OPTIMISERS[kind](0.1)
    start, some = gradients(5, 1, dim)[0], gradients(6, 5, dim)
    together = play(optimiser, start, some)
    for row in range(ROWS):
        alone = play(optimiser, start[row : row + 1], some[:, row : row + 1])
        for one, all_rows in zip(alone, together, strict=True):
            assert one.tobytes() == all_rows[row : row + 1].tobytes()


def test_lazy_adam_counts_the_steps_of_each_row():
    some = gradients(7, 3)
    start = np.zeros((ROWS, DIM), np.float32)
    adam = LazyAdam(0.1)
    state = np.tile(adam.initial_state(DIM), (ROWS, 1))
    weights, state = adam.step(start, state, some[0])
    half, late = adam.step(weights[:3], state[:3], some[1][:3])
    assert late[:, -1].view(np.uint32).tolist() == [2, 2, 2]
    assert state[3:, -1].copy().view(np.uint32).tolist() == [1, 1, 1]
    mixed, _ = adam.step(np.vstack((half, weights[3:])), np.vstack((late, state[3:])), some[2])
    expected, _ = adam.step(weights[3:], state[3:], some[2][3:])
    assert mixed[3:].tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_zero_gradients_and_no_eps_make_no_nan(kind: str):
    given = {"eps": 0.0} if "eps" in to_json(OPTIMISERS[kind](0.1)) else {}
    optimiser = OPTIMISERS[kind](0.1, **given)
    start = gradients(8, 1)[0]
    (found,) = play(optimiser, start, np.zeros((1, ROWS, DIM), np.float32))
    assert found.tobytes() == start.tobytes()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_optimisers_survive_json(kind: str):
    optimiser = OPTIMISERS[kind](0.125)
    assert from_json(to_json(optimiser)) == optimiser


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"kind": "momentum", "learning_rate": 0.1, "momentum": 1.0}, "momentum.momentum"),
        ({"kind": "lazy_adam", "beta2": 1.5}, "beta2"), ({"kind": "sgd"}, "learning_rate"),
        ({"kind": "adagrad", "learning_rate": -1}, "adagrad.learning_rate"), ({}, "optimiser.kind"),
    ],
)  # fmt: skip
def test_bad_hyperparameters_are_refused_by_name(bad: dict[str, object], named: str):
    with pytest.raises(InvalidRequest, match=named):
        from_json(bad)


# --- gradients on their way


@pytest.mark.parametrize("many", [1, 3, 400])
def test_duplicates_are_summed_in_the_order_of_their_positions(many: int):
    rng = np.random.default_rng(many)
    ids = rng.integers(0, 1 + 400 // many, 400) * 10**10
    some = (rng.normal(size=(400, 3)) * 10.0 ** rng.integers(-6, 6, (400, 1))).astype(np.float32)
    unique, sums = sum_duplicates(ids, some)
    expected: dict[int, np.ndarray] = {}
    for one, gradient in zip(ids.tolist(), some, strict=True):
        expected[one] = expected[one] + gradient if one in expected else gradient + np.float32(0)
    assert unique.tolist() == sorted(expected)
    assert sums.tobytes() == np.array([expected[i] for i in sorted(expected)]).tobytes()


def test_unique_ids_are_only_sorted():
    unique, sums = sum_duplicates(np.array([5, 2, 9]), np.eye(3, dtype=np.float32))
    assert unique.tolist() == [2, 5, 9]
    assert sums.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_no_numbers_are_refused_by_id(bad: float):
    some = np.zeros((20, 2), np.float32)
    check_gradients("user", np.arange(20), some)
    some[4:16, 1] = bad
    with pytest.raises(InvalidRequest, match=r"'user'.* 12 rows: ids 4, 5, .*11, \.\.\.$"):
        check_gradients("user", np.arange(20), some)
