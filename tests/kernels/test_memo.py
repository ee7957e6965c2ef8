"""What is made once of a layer's tensors: right for these values, and for as long as they live."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from kernels.matrices import operands
from proa_kernels.checksum import take
from proa_kernels.linear.reference import Matrix
from proa_kernels.rowcheck import Memo
from proa_kernels.rowcheck.layer import layer_of
from proa_kernels.rowcheck.screen import Screen


@pytest.mark.parametrize("inference", [False, True])
def test_it_is_made_anew_when_a_tensor_changes(inference: bool) -> None:
    memo: Memo[float] = Memo()
    with torch.inference_mode(inference):
        first, second = torch.ones(3), torch.ones(2)
        made = []

        def of(key: int = 0, bias: torch.Tensor | None = second) -> float:
            def make() -> float:
                made.append(key)
                return float(first.sum()) + (0.0 if bias is None else float(bias.sum()))

            return memo.of(make, first, bias, key)

        assert (of(), of(), len(made)) == (5.0, 5.0, 1)
        first[1] = 2.0
        assert (of(), of(), len(made)) == (6.0, 6.0, 2)
        second.mul_(2.0)
        assert (of(), of(), len(made)) == (8.0, 8.0, 3)
        assert (of(bias=None), of(bias=torch.zeros(1)), len(made)) == (4.0, 4.0, 5)
        of(key=1)
        assert len(made) == 6


def test_it_goes_with_the_tensor_it_was_made_of() -> None:
    memo: Memo[int] = Memo()
    first = torch.ones(3)
    memo.of(lambda: 1, first)
    assert len(memo._kept) == 1
    del first
    gc.collect()
    assert len(memo._kept) == 0


def test_a_limit_that_grew_in_memory_hides_nothing() -> None:
    x, weight = operands("n01", (4, 200, 32))
    check = take(weight)
    bias = torch.ones(200)
    product = Matrix(x, weight, check.columns, check.scales, bias)
    product.prepare()
    layer = layer_of(product)
    one = layer.limits[0]
    assert one.bias_norms is not None
    larger = replace(
        one, unit=one.unit * 1e6, least=one.least * 1e6, bias_norms=one.bias_norms * 1e6
    )
    for limits in ((larger, one), (one, larger)):
        found = replace(layer, limits=limits)
        assert found.limit == (one.unit, one.least, one.shares)
        assert found.bias_norms is not None
        assert torch.equal(found.bias_norms, one.bias_norms)
    acc = product.compute(0)
    before = Screen(product, product.rows(acc)).quick()
    assert float(before.amax()) < 1.0
    acc[2, 7] += 1.0
    assert float(Screen(product, product.rows(acc)).quick().amax()) > 1.0
