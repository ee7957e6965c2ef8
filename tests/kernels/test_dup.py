"""Computed twice and compared: what differs is found, and the majority of three is kept."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.images import Shape, images, plain
from kernels.matrices import operands
from proa_kernels import Verdict
from proa_kernels.dup import dup_conv2d, dup_linear
from proa_kernels.injection import flip

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = Shape(channels=6, outputs=200, size=(4, 3), stride=(1, 2), padding=(1, 1, 0, 0))
OPTIONS = {"stride": [1, 2], "padding": [1, 1, 0, 0], "dilation": [1, 1], "groups": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_clean_results_are_those_of_torch(dtype: torch.dtype) -> None:
    """Half types too: it is torch's own product, with torch's rounding."""
    x, weight = operands("n01", (5, 200, 24), dtype)
    bias = torch.ones(200, dtype=dtype)
    out, found = dup_linear(x, weight, bias)
    assert torch.equal(out, torch.nn.functional.linear(x, weight, bias))
    assert found.tolist() == [10, 0, 0, 0, 0, -1, -1, -1]
    scaled, _ = dup_linear(x, weight.T.contiguous(), bias, inner_first=True, alpha=0.5, beta=2.0)
    expected = torch.addmm(bias.double(), x.double(), weight.double().T, alpha=0.5, beta=2.0)
    torch.testing.assert_close(scaled.double(), expected, rtol=0.02, atol=0.1)
    x, weight = images("n01", SHAPE, dtype)
    out, found = dup_conv2d(x, weight, None, **OPTIONS)
    assert torch.equal(out, plain(x, weight, SHAPE))
    assert Verdict.read(found).checks == 2 * out.shape[0] * out.shape[2] * out.shape[3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [0, 1])
def test_the_lowest_bit_is_found_and_the_majority_kept(dtype: torch.dtype, wrong: int) -> None:
    x, weight = operands("n01", (5, 200, 24), dtype)
    clean, _ = dup_linear(x, weight, None)

    def tamper(out: torch.Tensor, attempt: int) -> None:
        if attempt == wrong:
            flip(out, (3, 150), 1)

    for correct in (False, True):
        out, found = dup_linear(x, weight, None, correct=correct, tamper=tamper)
        verdict = Verdict.read(found)
        assert (verdict.alarms, verdict.repaired) == (1, int(correct))
        assert (verdict.row, verdict.column, verdict.ratio) == (3, 150, math.inf)
        assert torch.equal(out, clean) is (correct or wrong == 1)


@pytest.mark.parametrize("last", [False, True])
def test_places_of_a_convolution(last: bool) -> None:
    x, weight = images("n01", SHAPE)
    x = x.to(memory_format=torch.channels_last) if last else x
    clean, _ = dup_conv2d(x, weight, None, **OPTIONS)

    def tamper(out: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            out[1, 130, 2, 0] += 1.0
            out[1, 131, 3, 0] += 1.0
            out[1, 132, 3, 0] += 1.0

    out, found = dup_conv2d(x, weight, None, **OPTIONS, correct=True, tamper=tamper)
    verdict = Verdict.read(found)
    rows, columns = clean.shape[2:]
    assert (verdict.alarms, verdict.repaired, verdict.column) == (2, 2, 130)
    assert verdict.row == (rows + 2) * columns
    assert torch.equal(out, clean)
    assert out.stride() == clean.stride()


def test_three_that_differ_are_not_repaired() -> None:
    x, weight = operands("n01", (5, 200, 24))

    def tamper(out: torch.Tensor, attempt: int) -> None:
        out[2, 9] += 1.0 + attempt

    out, found = dup_linear(x, weight, None, correct=True, tamper=tamper)
    verdict = Verdict.read(found)
    assert (verdict.alarms, verdict.repaired, verdict.status) == (1, 0, "failed")
    assert float(out[2, 9]) != float(torch.nn.functional.linear(x, weight)[2, 9])


def test_what_it_does_not_see() -> None:
    """The same fault twice; and NaN that repeats is no fault of the arithmetic."""
    x, weight = operands("n01", (5, 20, 24))

    def tamper(out: torch.Tensor, attempt: int) -> None:
        out[2, 9] = 7.0

    assert Verdict.read(dup_linear(x, weight, None, tamper=tamper)[1]).status == "clean"
    x[0, 0] = math.nan
    assert Verdict.read(dup_linear(x, weight, None)[1]).status == "clean"


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8)])
def test_a_batch_of_none(shape: tuple[int, ...]) -> None:
    out, found = dup_linear(torch.zeros(shape), torch.ones(5, 8), None)
    assert out.shape == (*shape[:-1], 5)
    assert found.tolist() == [0, 0, 0, 0, 0, -1, -1, -1]


def test_torch_accepts_the_operators() -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x, weight = operands("n01", (3, 10, 8))
    options = {"inner_first": False, "alpha": 1.0, "beta": 1.0, "correct": True}
    linear, conv = torch.ops.proa.dup_linear.default, torch.ops.proa.dup_conv2d.default
    torch.library.opcheck(linear, (x, weight, None), options, test_utils=tests)
    x, weight = images("n01", SHAPE)
    torch.library.opcheck(conv, (x, weight, None), {**OPTIONS, "correct": True}, test_utils=tests)
    assert "tamper" not in str(linear._schema) + str(conv._schema)
