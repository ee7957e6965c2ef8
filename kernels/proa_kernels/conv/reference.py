"""The checked convolution: definition of `proa::checked_conv2d`, in plain torch for any device.

A convolution is a product of each place's patch with the kernel as a matrix, and is checked like
one: a row is one output place (b, p, q), a tile is up to 128 output channels of one group. The
check value is a convolution with the checksums as kernel, so borders, strides and dilations need
no correction. Letters as in `geometry`.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import conv2d

from proa_kernels.checksum import TILE, joined
from proa_kernels.conv import config
from proa_kernels.conv.geometry import Geometry
from proa_kernels.conv.taps import added, box, walk_of
from proa_kernels.conv.thin import block_filters, by_tap, filters
from proa_kernels.rowcheck import Product, Tamper, Tiling, check_rows, squares_of


def checked_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    geometry: Geometry,
    *,
    correct: bool,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 accumulators `[B, N, P, Q]`, with the bias, and their verdict, float64 `[8]`.

    `x` `[B, C, H, W]`, `weight` `[N, C / G, R, S]`: one of fp32, bf16, fp16; `columns`, `scales`:
    the kernel's checksum. The rows of the verdict are (b, p, q) in that order.
    """
    product = Convolution(x, weight, bias, columns, scales, geometry, tamper)
    return check_rows(product, correct=correct)


class Convolution(Product):
    """A convolution as rows of a matrix."""

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        columns: torch.Tensor,
        scales: torch.Tensor,
        geometry: Geometry,
        tamper: Tamper | None = None,
    ) -> None:
        x, padding = geometry.padded(x.float())
        self._x, self._weight = x, weight.float()
        self._columns, self._geometry, self._tamper = columns, geometry, tamper
        self.tiling = Tiling(geometry.groups, weight.shape[0] // geometry.groups)
        self.inner = weight[0].numel()
        self.stored = scales
        self.bias = None if bias is None else bias.float()
        height, width = x.shape[2:]
        self._walk = walk_of(
            (height, width), (weight.shape[2], weight.shape[3]),
            geometry.stride, padding, geometry.dilation,
        )  # fmt: skip
        self._last = False
        self._sums: torch.Tensor | None = None

    def prepare(self) -> None:
        if not len(self._x):
            return
        groups, shape = self._geometry.groups, self._weight.shape[1:]
        if self.tiling.outputs == 1:  # one channel is its own sum: the second one follows of it
            self._checks = self._thin(filters(self._columns, groups, shape, ones=False))
        elif self._sums_first():
            self._checks, self._sums = self._shifted()
        elif self._block() != (1, 1):  # the pass for |a| is a small one where inputs are few
            self._checks = self._by_block(self._block())
        else:
            # A third checksum, of ones: its channels cost less than the pass that they spare.
            found = self._thin(filters(self._columns, groups, shape, ones=True))
            found = found.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
            self._checks, self._sums = found[:, :, :-1].flatten(1, 2), found[:, :, -1]

    def compute(self, attempt: int) -> torch.Tensor:
        acc = self._convolve(self._x, self._weight, self.bias)
        # Whether the channels of a place lie together, as in channels_last.
        self._last = not acc.is_contiguous()
        if self._last and not acc.is_contiguous(memory_format=torch.channels_last):
            acc, self._last = acc.contiguous(), False
        if self._tamper is not None:
            self._tamper(acc, attempt)
        return acc

    def rows(self, acc: torch.Tensor) -> torch.Tensor:
        return self._by_row(acc)

    def checksums(self) -> torch.Tensor:
        checks = self._by_row(self._checks)
        if self.tiling.outputs == 1:
            return torch.stack([checks, checks * (1.0 - 1.0 / TILE)], 2)
        return checks.view(len(checks), self.tiling.count, 2, checks.shape[2])

    def sums(self) -> torch.Tensor | None:
        return None if self._sums is None else self._by_row(self._sums)

    def squares(self) -> torch.Tensor:
        groups = self._geometry.groups
        seen, simple = self._seen()
        squares = squares_of(seen.flatten(2), groups)
        squares = squares.view(len(seen), groups, *seen.shape[2:])
        return self._by_row(squares if simple else box(squares, self._walk))

    def inputs(self, tile: int, rows_R: torch.Tensor) -> torch.Tensor:
        walk, channels = self._walk, self._weight.shape[1]
        first = tile // self.tiling.per_group * channels
        places = math.prod(walk.places)
        place_R = rows_R % places
        starts = (place_R // walk.places[1], place_R % walk.places[1])
        at, inside = [], []
        for axis, start_R in enumerate(starts):
            steps = torch.arange(walk.kernel[axis], device=rows_R.device)
            start_R = start_R * walk.stride[axis] - walk.padding[axis]
            index_Rk = start_R[:, None] + steps * walk.dilation[axis]
            inside.append((index_Rk >= 0) & (index_Rk < walk.sizes[axis]))
            at.append(index_Rk.clamp(0, walk.sizes[axis] - 1))
        image_R = rows_R // places
        of = torch.arange(first, first + channels, device=rows_R.device)
        patch = self._x[
            image_R[:, None, None, None], of[None, :, None, None],
            at[0][:, None, :, None], at[1][:, None, None, :],
        ]  # fmt: skip
        within = (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
        return torch.where(within, patch, 0.0).flatten(1).double()

    def weights(self, tile: int) -> torch.Tensor:
        return self._weight[self.tiling.span(tile)].flatten(1).double()

    def columns(self, tile: int) -> torch.Tensor:
        return joined(self._columns[:, :, 2 * tile : 2 * tile + 2], torch.float64)

    def _convolve(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        at = self._geometry
        return conv2d(x, weight, bias, at.stride, self._walk.padding, at.dilation, at.groups)

    def _by_row(self, values: torch.Tensor) -> torch.Tensor:
        """`[B, n, P, Q]` in the layout of the accumulators: `[B, n, P Q]`, or `[B P Q, n, 1]` where
        the channels lie together."""
        if self._last:
            return values.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(2)
        return values.flatten(2)

    def _seen(self) -> tuple[torch.Tensor, bool]:
        """The input, or the part of it that a kernel of one tap sees; whether it is that."""
        if self._walk.kernel != (1, 1) or self._walk.padding != (0, 0):
            return self._x, False
        rows, columns = self._geometry.stride
        return self._x[:, :, ::rows, ::columns], True

    def _sums_first(self) -> bool:
        if not self._x.is_contiguous():
            return False
        walk = self._walk
        taps, places = math.prod(walk.kernel), math.prod(walk.places)
        seen = places if taps == 1 and walk.padding == (0, 0) else math.prod(walk.sizes)
        checks = 2 * self.tiling.per_group
        return config.sums_first(self._weight.shape[1], checks, taps, seen, places)

    def _thin(self, kernel: torch.Tensor) -> torch.Tensor:
        """`[B, G c, P, Q]`: a convolution with the checksums as kernel."""
        return self._convolve(self._x, kernel, None)

    def _block(self) -> tuple[int, int]:
        at = self._geometry
        if at.groups > 1 or max(at.dilation) > 1 or not self._x.is_contiguous():
            return 1, 1
        checks = 2 * self.tiling.per_group
        return config.block(self._weight.shape[1], checks, self._walk.places)

    def _by_block(self, block: tuple[int, int]) -> torch.Tensor:
        """The same, several places at once."""
        (rows, steps), stride = block, self._geometry.stride
        kernel = block_filters(self._columns, self._weight.shape[1:], stride, block)
        strides = rows * stride[0], steps * stride[1]
        found = conv2d(self._x, kernel, None, strides, self._walk.padding)
        found = found.view(len(found), rows, steps, -1, *found.shape[2:])
        found = found.permute(0, 3, 4, 1, 5, 2)
        return found.reshape(len(found), -1, *self._walk.places)

    def _shifted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the sums of the inputs `[B, G, P, Q]`: sums over the channels for each tap
        of the kernel, shifted and added."""
        groups, channels = self._geometry.groups, self._weight.shape[1]
        seen, simple = self._seen()
        batch, _, *sizes = seen.shape
        left = by_tap(self._columns, groups, channels)
        left = left.expand(batch, -1, -1, -1).flatten(0, 1)
        products = torch.bmm(left, seen.reshape(batch * groups, channels, -1))
        products = products.view(batch, groups, -1, *sizes)
        products, sums = products[:, :, :-1], products[:, :, -1]
        if simple:
            return products.flatten(1, 2), sums
        products = products.unflatten(2, (*self._walk.kernel, -1))  # type: ignore[no-untyped-call]
        return added(products, self._walk).flatten(1, 2), box(sums, self._walk)
