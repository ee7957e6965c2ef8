"""The checked convolution: torch's own results, no alarm when clean, faults found and repaired."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.images import Shape, convolution, images, plain
from kernels.matrices import DEGENERATE, KINDS, REGULAR
from proa_kernels import ABFTConv2d, KernelError, Verdict
from proa_kernels.conv import config
from proa_kernels.conv.checksum import key_of, take
from proa_kernels.injection import flip, injecting

log = logging.getLogger("campaign")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}

two = st.tuples(st.integers(1, 3), st.integers(1, 3))
SHAPES = st.builds(
    lambda groups, channels, outputs, **rest: Shape(
        channels=groups * channels, outputs=groups * outputs, groups=groups, **rest
    ),
    batch=st.integers(0, 3),
    groups=st.sampled_from([1, 1, 1, 2, 5]),
    channels=st.sampled_from([1, 2, 3, 16, 33]),
    outputs=st.sampled_from([1, 2, 3, 30, 128, 130]),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel=two,
    stride=two,
    padding=st.tuples(*(st.integers(0, 3),) * 4),
    dilation=two,
)
CASES = settings(deadline=None, max_examples=60, derandomize=True)


def at_place(out: torch.Tensor, index: tuple[int, int, int, int]) -> int:
    """The verdict's row of an output place."""
    image, _, row, column = index
    return (image * out.shape[2] + row) * out.shape[3] + column


@CASES
@given(shape=SHAPES, bias=st.booleans(), last=st.booleans(), seed=st.integers(0, 99))
def test_results_have_the_bits_of_torch(shape: Shape, bias: bool, last: bool, seed: int) -> None:
    """All strides, paddings, dilations, groups; and the input's layout is the output's."""
    assume(shape.fits)
    x, weight = images("n01", shape, seed=seed)
    x = x.to(memory_format=torch.channels_last) if last else x
    addend = torch.randn(shape.outputs) * 10 if bias else None
    expected = plain(x, weight, shape, addend)
    out, verdict = convolution(x, weight, shape, bias=addend, correct=True)
    top, bottom, left, right = shape.padding
    if (top, left) == (bottom, right):
        assert torch.equal(out, expected)
        assert out.stride() == expected.stride()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    tiles = shape.groups * math.ceil(shape.outputs / shape.groups / 128)
    assert verdict.checks == expected.shape[0] * expected.shape[2] * expected.shape[3] * tiles
    assert (verdict.alarms, verdict.row, verdict.column) == (0, -1, -1)


@CASES
@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    bias=st.booleans(),
    data=st.data(),
)
def test_a_wrong_value_is_found_located_and_repaired(
    shape: Shape, dtype: torch.dtype, last: bool, bias: bool, data: st.DataObject
) -> None:
    """Anywhere, so at borders too."""
    assume(shape.fits and shape.batch)
    x, weight = images("n01", shape, dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    addend = torch.randn(shape.outputs).to(dtype) if bias else None
    clean, _ = convolution(x, weight, shape, bias=addend)
    index = tuple(data.draw(st.integers(0, size - 1)) for size in clean.shape)

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc[index] += 4.0 * math.sqrt(weight[0].numel())

    for correct in (False, True):
        out, verdict = convolution(x, weight, shape, bias=addend, correct=correct, tamper=tamper)
        assert (verdict.alarms, verdict.repaired) == (1, int(correct))
        assert (verdict.row, verdict.column) == (at_place(clean, index), index[1])
        assert torch.equal(out, clean) is correct


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_types_are_summed_in_fp32(dtype: torch.dtype) -> None:
    shape = Shape(channels=64, outputs=130)
    x, weight = images("n01", shape, dtype)
    out, verdict = convolution(x, weight, shape)
    exact = plain(x.double(), weight.double(), shape)
    assert (out.dtype, verdict.status) == (dtype, "clean")
    assert float((out.double() - exact).norm() / exact.norm()) < TOLERANCE[dtype]


SIZES = (
    Shape(batch=1, channels=64, outputs=128, size=(6, 6)),
    Shape(batch=2, channels=128, outputs=256, kernel=(1, 1), padding=(0,) * 4),
    Shape(batch=1, channels=3, outputs=64, size=(20, 20), kernel=(7, 7), stride=(2, 2)),
    Shape(batch=1, channels=96, outputs=96, groups=8),
    Shape(batch=1, channels=64, outputs=64, groups=64, size=(12, 12)),
    Shape(batch=1, channels=512, outputs=130, size=(5, 5), dilation=(2, 2), padding=(2,) * 4),
)


@pytest.mark.parametrize("kind", REGULAR)
def test_no_alarm_on_clean_data(kind: str) -> None:
    worst, checks = 0.0, 0
    for dtype in DTYPES:
        for seed, shape in enumerate(SIZES):
            _, verdict = convolution(*images(kind, shape, dtype, seed=seed), shape)
            assert verdict.alarms == 0
            worst, checks = max(worst, verdict.ratio), checks + verdict.checks
    assert checks > 20_000
    assert 0.0 < worst < 1.0


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data_never_alarms(kind: str) -> None:
    for dtype in DTYPES:
        for shape in SIZES:
            _, verdict = convolution(*images(kind, shape, dtype), shape)
            assert (verdict.alarms, verdict.repaired) == (0, 0)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_clean_checks(kind: str) -> None:
    """Altogether more than 1e6 row checks of convolutions, none of which alarms."""
    shapes = (
        Shape(batch=2, channels=64, outputs=256, size=(56, 56), kernel=(1, 1), padding=(0,) * 4),
        Shape(batch=2, channels=64, outputs=64, size=(56, 56)),
        Shape(batch=2, channels=128, outputs=256, size=(28, 28), stride=(2, 2)),
        Shape(batch=2, channels=512, outputs=512, size=(7, 7)),
        Shape(batch=2, channels=3, outputs=64, size=(96, 96), kernel=(7, 7), stride=(2, 2)),
        Shape(batch=2, channels=128, outputs=256, size=(14, 14), groups=32),
        Shape(batch=2, channels=32, outputs=32, size=(28, 28), groups=32),
    )
    checks = cleared = 0
    for dtype in DTYPES:
        worst = 0.0
        for shape in shapes:
            _, verdict = convolution(*images(kind, shape, dtype), shape)
            assert verdict.alarms == 0
            checks, cleared = checks + verdict.checks, cleared + verdict.cleared
            worst = max(worst, verdict.ratio)
        log.info("clean conv %s %s: worst ratio %.3f", kind, dtype, worst)
        assert worst < 1.0 or kind not in REGULAR
    log.info("clean conv %s: %d checks, 0 alarms, %d cleared", kind, checks, cleared)
    assert checks > 125_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["n01", "relu", "outlier", "t3"])
def test_flips_that_change_the_stored_output(kind: str, dtype: torch.dtype) -> None:
    """Of single flips in the accumulators, those above 1e-3 of sigma are all found."""
    shape = Shape(batch=2, channels=64, outputs=128, size=(8, 8))
    x, weight = images(kind, shape, dtype)
    check, generator = take(weight, 1), torch.Generator().manual_seed(5)
    clean, _ = convolution(x, weight, shape, check)
    sigma, missed, large, located = float(clean.float().std()), 0, 0, 0
    for bit in range(12, 32):
        index = tuple(int(torch.randint(n, (), generator=generator)) for n in clean.shape)
        gap = 0.0

        def tamper(
            acc: torch.Tensor, attempt: int, at: tuple[int, ...] = index, bit: int = bit
        ) -> None:
            nonlocal gap
            if attempt == 0:
                before = float(acc[at])
                flip(acc, at, 1 << bit)
                gap = abs(float(acc[at]) - before)

        _, verdict = convolution(x, weight, shape, check, tamper=tamper)
        if not gap <= 1e-3 * sigma:
            large += 1
            missed += verdict.alarms == 0
            located += (verdict.row, verdict.column) == (at_place(clean, index), index[1])  # type: ignore[arg-type]
    assert large >= 5
    assert (missed, located) == (0, large)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_kernel_changed_after_its_checksum_alarms(dtype: torch.dtype, groups: int) -> None:
    shape = Shape(channels=16, outputs=32, groups=groups)
    x, weight = images("n01", shape, dtype)
    check = take(weight, groups)
    flip(weight, (17, 2, 1, 1), 1 << (25 if dtype == torch.float32 else 11))
    _, verdict = convolution(x, weight, shape, check, correct=True)
    assert verdict.alarms > verdict.checks // groups // 2
    assert (verdict.repaired, verdict.column, verdict.status) == (0, 17, "failed")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_input_that_is_no_number_alarms_where_it_is_seen(value: float) -> None:
    shape = Shape(size=(9, 9), stride=(2, 2))
    x, weight = images("n01", shape)
    x[1, 3, 0, 0] = value  # a corner: one place of the output sees it
    _, verdict = convolution(x, weight, shape, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.row) == (1, 0, 25)
    assert verdict.ratio == math.inf


def test_both_ways_to_the_check_values_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost rule changes no decision."""
    for shape in (*SIZES, Shape(channels=32, size=(8, 9), stride=(3, 2), padding=(2, 0, 3, 1))):
        x, weight = images("n01", shape)
        ratios = []
        for way in (True, False):
            monkeypatch.setattr(config, "sums_first", lambda *_args, way=way: way)
            verdict = convolution(x, weight, shape)[1]
            assert verdict.status == "clean"
            ratios.append(verdict.ratio)
        assert max(ratios) < 1.0


def test_the_key_knows_the_groups() -> None:
    weight = images("n01", Shape(channels=8, outputs=8))[1]
    assert len({key_of(weight, 1), key_of(weight, 2), key_of(weight[:4], 1)}) == 3


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)])
def test_the_module_is_a_convolution(padding: str | int, last: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 10, (3, 2), padding=padding, groups=2)
    module = ABFTConv2d(layer, mode="correct")
    x = torch.randn(3, 6, 9, 8)
    x = x.to(memory_format=torch.channels_last) if last else x
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(module(x), expected)
    assert module.last().status == "clean"
    assert module.state_dict().keys() == layer.state_dict().keys()

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc[2, 7, 0, 0] = 1e6

    with injecting(tamper):
        assert torch.equal(module(x), expected)
    assert (module.last().status, module.last().column) == ("corrected", 7)
    key = module.key
    with torch.no_grad():
        layer.weight.mul_(2.0)
    module.load_state_dict(layer.state_dict())
    module(x)
    assert (module.last().status, module.key == key) == ("clean", False)


def test_the_module_refuses() -> None:
    with pytest.raises(KernelError, match="'reflect'"):
        ABFTConv2d(torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(KernelError, match="float64"):
        ABFTConv2d(torch.nn.Conv2d(2, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("images", torch.float32), ("images", torch.bfloat16), ("rows", torch.float16)],
)
def test_torch_accepts_the_operator(name: str, dtype: torch.dtype) -> None:
    """Schema, fake kernel and dynamic shapes agree with what the kernel does."""
    x, weight = images("n01", Shape(channels=4, outputs=6, groups=2), dtype)
    options = {"stride": [2, 1], "padding": [1, 1, 0, 1], "dilation": [1, 2], "groups": 2}
    if name == "rows":
        x, weight = x[:, :, 0], weight[:, :, 0].contiguous()
        options = {"stride": [2], "padding": [1, 1], "dilation": [1], "groups": 2}
    check = take(weight, 2)
    args = (x, weight, torch.ones(6, dtype=dtype), check.columns, check.scales)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.proa.checked_conv2d.default
    torch.library.opcheck(op, args, {**options, "correct": True}, test_utils=tests)
    assert "tamper" not in str(op._schema)
    found = op(*args, **options, correct=True)
    assert Verdict.read(found[1]).status == "clean"
    with pytest.raises(KernelError, match="checksum is of another"):
        op(
            *(one.to("meta") for one in (*args[:3], check.columns[:, :3], args[4])),
            **options,
            correct=True,
        )
