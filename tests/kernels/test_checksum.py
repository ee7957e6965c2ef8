"""Checksums: sums, splits, keys."""

from __future__ import annotations

import pytest
import torch

from kernels.matrices import operands
from proa_kernels import WeightsRefused
from proa_kernels.checksum import TILE, joined, key_of, matches, place_of, ramp, split, take

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [1, 127, 128, 129, 300])
def test_columns_are_the_sums_of_each_tile(dtype: torch.dtype, outputs: int) -> None:
    weight = operands("t3", (1, outputs, 37), dtype)[1]
    check = take(weight)
    tiles = -(-outputs // TILE)
    assert check.columns.shape == (1 if dtype == torch.float32 else 3, 37, 2 * tiles)
    assert check.scales.shape == (2, tiles, 3)
    for tile in range(tiles):
        part = weight[tile * TILE : (tile + 1) * TILE].double()
        pairs = [step for odd in range(127, 0, -2) for step in (odd, -odd)]
        steps = torch.tensor(pairs[: len(part)], dtype=torch.float64) / TILE
        for at, exact in enumerate((part.sum(0), steps @ part)):
            found = joined(check.columns, torch.float64)[:, 2 * tile + at]
            assert bool(((found - exact).abs() <= 2.0**-24 * exact.abs()).all())
            assert float(check.scales[1, tile, 1 + at]) == pytest.approx(float(exact.norm()))
        assert float(check.scales[0, tile, 0]) == pytest.approx(float(part.norm()))


def test_the_second_vector_tells_every_column() -> None:
    """Exact in half types, all different, neighbours on either side of zero."""
    steps = ramp(TILE, torch.float64, torch.device("cpu"))[1]
    for dtype in DTYPES:
        assert torch.equal(ramp(TILE, dtype, torch.device("cpu"))[1].double(), steps)
    assert float(steps.sort().values.diff().min()) == 2 / TILE
    assert float(steps.abs().max()) < 1.0
    assert bool((steps[::2] * steps[1::2] < 0.0).all())
    for off in (0.0, 0.99 / TILE, -0.99 / TILE):
        assert [place_of(float(step) + off) for step in steps] == list(range(TILE))
    assert all(not 0 <= place_of(far) < TILE for far in (1.01, -1.5, 1.99))


def test_three_bf16_hold_more_than_fp32() -> None:
    exact = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = split(exact, torch.bfloat16, 3)
    assert parts.dtype == torch.bfloat16
    assert bool(((parts.double().sum(0) - exact).abs() <= 2.0**-26 * exact.abs()).all())
    # In fp32, as the reference adds them, two roundings are lost at most.
    assert bool(((parts.float().sum(0) - exact).abs() <= 2.0**-23 * exact.abs()).all())


def test_the_key_is_of_values_shape_and_dtype() -> None:
    weight = operands("n01", (1, 6, 4))[1]
    other = weight.clone()
    other.view(torch.int32)[3, 2] ^= 1
    keys = [key_of(weight), key_of(other), key_of(weight.view(4, 6)), key_of(weight.double())]
    assert len(set(keys)) == 4
    assert key_of(weight.T.contiguous().T) == key_of(weight)  # how it lies does not matter
    assert take(weight).key == keys[0]
    assert matches(weight, keys[0])
    assert not matches(other, keys[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = torch.zeros(3, 2)
    weight[1, 1] = value
    with pytest.raises(WeightsRefused, match="NaN or Inf"):
        take(weight)


def test_sums_beyond_fp32_are_refused() -> None:
    with pytest.raises(WeightsRefused, match="beyond fp32"):
        take(torch.full((4, 2), 3e38))
