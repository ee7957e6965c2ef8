"""The ways to a convolution's check values: each is the plain convolution with the checksums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from kernels.images import Shape, convolution, images
from proa_kernels.conv import config
from proa_kernels.conv.checksum import take
from proa_kernels.conv.geometry import Geometry
from proa_kernels.conv.reference import Convolution
from proa_kernels.conv.taps import Walk, added, box
from proa_kernels.conv.thin import by_tap, filters
from proa_kernels.injection import flip

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
WALKS = st.builds(
    Walk,
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=pairs,
    stride=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(walk=WALKS, groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_sums_made_first_are_shifted_to_their_places(walk: Walk, groups: int, seed: int) -> None:
    assume(min(walk.places) > 0)
    torch.manual_seed(seed)
    x = torch.randn(2, groups, *walk.sizes)
    weight = torch.randn(groups * 3, 1, *walk.kernel)
    options = (None, walk.stride, walk.padding, walk.dilation, groups)
    by_tap = weight.view(groups, 3, *walk.kernel).permute(0, 2, 3, 1)
    products = torch.einsum("bghw,grsc->bgrschw", x, by_tap)
    found = added(products, walk).flatten(1, 2)
    torch.testing.assert_close(found, conv2d(x, weight, *options), rtol=1e-5, atol=1e-5)
    ones = torch.ones(groups, 1, *walk.kernel)
    torch.testing.assert_close(box(x, walk), conv2d(x, ones, *options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", [8, 200, 400])
@pytest.mark.parametrize("size", [(16, 24), (17, 24), (16, 22)])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_of_places_find_what_single_ones_do(
    outputs: int, size: tuple[int, int], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(channels=3, outputs=outputs, size=size)
    x, weight = images("n01", shape)
    weight = torch.nn.functional.pad(weight, (0, 4, 4, 0))  # 7 by 7
    taken = take(weight, 1)
    geometry = Geometry((stride, stride), (3,) * 4, (1, 1), 1)
    monkeypatch.setattr(config, "sums_first", lambda *_args: False)
    found = []
    for block in (config.block, lambda *_args: (1, 1)):
        monkeypatch.setattr(config, "block", block)
        product = Convolution(x, weight, None, taken.columns, taken.scales, geometry)
        product.prepare()
        product.compute(0)
        found.append((product.checksums(), product.squares(), product.sums() is None))
    (blocks, size_a, spared), (single, size_b, _) = found
    assert spared == (2 * 2 * -(-outputs // 128) <= config.LANES and size[1] // stride % 2 == 0)
    torch.testing.assert_close(blocks, single, rtol=1e-4, atol=1e-4)
    assert torch.equal(size_a, size_b)


def test_an_image_of_few_channels_fills_the_lanes() -> None:
    assert config.block(3, 2, (112, 112)) == (2, 4)
    assert config.block(3, 2, (111, 112)) == (1, 2)
    assert config.block(3, 8, (112, 112)) == (1, 2)
    assert config.block(3, 16, (112, 112)) == config.block(64, 2, (56, 56)) == (1, 1)


def test_a_number_that_is_none_alarms_where_it_is_seen_and_not_beside_it() -> None:
    """A block's kernel has zeros around: times NaN they are NaN, and then a second look decides."""
    shape = Shape(channels=3, outputs=8, size=(8, 8), kernel=(1, 3), padding=(0, 0, 1, 1))
    x, weight = images("n01", shape)
    x[1, 2, 4, 0] = float("nan")
    verdict = convolution(x, weight, shape, correct=True)[1]
    assert (verdict.alarms, verdict.row) == (2, 64 + 32)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (7, 7)])
@pytest.mark.parametrize("inference", [False, True])
def test_a_checksum_that_changes_after_the_first_call_is_seen(
    kernel: tuple[int, int], inference: bool
) -> None:
    """What was made of it once is made anew; torch counts no changes of inference tensors."""
    channels = 3 if kernel == (7, 7) else 32
    pad = (kernel[0] // 2,) * 4
    shape = Shape(channels=channels, outputs=32, size=(8, 8), kernel=kernel, padding=pad)
    with torch.inference_mode(inference):
        x, weight = images("n01", shape)
        check = take(weight, 1)
        assert convolution(x, weight, shape, check)[1].status == "clean"
        flip(check.columns, (0, 2, 0), 1 << 29)
        assert convolution(x, weight, shape, check)[1].status == "failed"
        flip(check.columns, (0, 2, 0), 1 << 29)
        assert convolution(x, weight, shape, check)[1].status == "clean"


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_copy_that_changes_in_memory_hides_nothing_and_alarms_not(
    kernel: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored checksum clears the suspicion; the row of ones raises no limit."""
    shape = Shape(channels=32, outputs=32, kernel=(kernel,) * 2, padding=(kernel // 2,) * 4)
    monkeypatch.setattr(config, "sums_first", lambda *_args: first)
    x, weight = images("relu", shape)
    check = take(weight, 1)
    made = convolution(x, weight, shape, check)[1]
    assert (made.status, made.cleared) == ("clean", 0)
    if first:
        copy = by_tap(check.columns, 1, 32)[0]
    else:
        copy = filters(check.columns, 1, weight.shape[1:], ones=True)
    copy[-1, 3] = 2.0**60
    wrong = weight.clone()
    wrong[5, 3] += 1.0
    assert convolution(x, wrong, shape, check)[1].status == "failed"
    copy.view(-1)[7] += 1.0
    found = convolution(x, weight, shape, check)[1]
    assert found.status == "clean"
    assert found.cleared > 0
