"""The first sieve of the row check: cheaper than the threshold, and never above it."""

from __future__ import annotations

import math

import pytest
import torch

from proa_kernels.checksum import take as take_matrix
from proa_kernels.conv import checksum
from proa_kernels.conv.geometry import Geometry
from proa_kernels.conv.reference import Convolution
from proa_kernels.linear.reference import Matrix
from proa_kernels.rowcheck import Product
from proa_kernels.rowcheck.screen import Screen

Shape = tuple[int, int, int, int, int, int]  # channels, outputs, kernel, stride, padding, groups
SHAPES: list[Shape] = [
    (16, 130, 1, 1, 0, 1),
    (16, 24, 3, 1, 1, 1),
    (12, 20, 3, 2, 1, 2),
    (3, 8, 7, 2, 3, 1),
    (6, 6, 3, 1, 1, 6),
]


def _convolution(shape: Shape, x: torch.Tensor, *, biased: bool = True) -> Convolution:
    channels, outputs, kernel, stride, padding, groups = shape
    weight = torch.randn(outputs, channels // groups, kernel, kernel)
    found = checksum.take(weight, groups)
    bias = torch.randn(outputs) * 3.0 if biased else None
    geometry = Geometry((stride, stride), (padding,) * 4, (1, 1), groups)
    return Convolution(x, weight, bias, found.columns, found.scales, geometry)


def _screen(product: Product) -> Screen:
    product.prepare()
    return Screen(product, product.rows(product.compute(0)))


def _images(kind: str, channels: int) -> torch.Tensor:
    x = torch.randn(2, channels, 9, 10)
    if kind == "relu":
        return x.relu()
    if kind == "coherent":
        return x + 100.0
    return x * (torch.rand(9, 10) < 0.3) if kind == "sparse" else x


@pytest.mark.parametrize("kind", ["normal", "relu", "coherent", "sparse"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_what_the_quick_sieve_passes_the_threshold_passes(
    kind: str, shape: Shape, last: bool
) -> None:
    torch.manual_seed(5)
    x = _images(kind, shape[0])
    x = x.to(memory_format=torch.channels_last) if last else x
    for biased in (False, True):
        screen = _screen(_convolution(shape, x, biased=biased))
        quick_BGP, ratio_BTP = screen.quick(), screen.ratio().amax(2)
        by_group = ratio_BTP.view(len(ratio_BTP), shape[5], -1, ratio_BTP.shape[2]).amax(2)
        assert bool((quick_BGP * (1.0 + 1e-5) >= by_group).all())


def test_images_after_a_relu_pass_it_without_the_norms_of_their_patches() -> None:
    torch.manual_seed(6)
    for shape in SHAPES[:4]:
        product = _convolution(shape, _images("relu", shape[0]))
        screen = _screen(product)
        product.squares = None  # type: ignore[assignment,method-assign]
        assert float(screen.quick().amax()) <= 1.0


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_sums_beyond_fp32_do_not_pass_it(shape: Shape) -> None:
    """Each term is finite, and so is what is multiplied; a limit of Inf would let all through."""
    torch.manual_seed(7)
    product = _convolution(shape, torch.full((1, shape[0], 9, 10), 3e38))
    product.prepare()
    acc = product.rows(product.compute(0)).nan_to_num(0.0, 0.0, 0.0)
    product._checks = torch.zeros_like(product._checks)
    assert not bool((Screen(product, acc).quick() <= 1.0).any())


def test_rows_of_a_matrix_are_sieved_with_their_own_norms() -> None:
    torch.manual_seed(8)
    weight = torch.randn(300, 40)
    found = take_matrix(weight)
    for rows in (3, 100):  # few, and many: the check values are multiplied the other way round
        x = torch.randn(rows, 40)
        product = Matrix(x, weight, found.columns, found.scales, torch.randn(300))
        screen = _screen(product)
        exact = x.double() @ found.columns[0].double()
        checks = product.checksums().flatten(1).double()
        assert float((checks - exact).abs().max()) < 1e-3 * math.sqrt(40)
        quick_BGP, ratio_BTP = screen.quick(), screen.ratio().amax(2)
        assert bool((quick_BGP[:, 0] * (1.0 + 1e-5) >= ratio_BTP.amax(1)).all())
        assert float(quick_BGP.amax()) <= 1.0
