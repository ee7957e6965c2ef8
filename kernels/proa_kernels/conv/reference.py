"""The checked convolution: definition of `proa::checked_conv2d`, in plain torch for any device.

A convolution is a product of each place's patch with the kernel as a matrix, and is checked like
one: a row is one output place (b, p, q), a tile is up to 128 output channels of one group. The
check value is a convolution with the checksums as kernel, so borders, strides and dilations need
no correction. Letters as in `geometry`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d

from proa_kernels.checksum import TILE, joined
from proa_kernels.conv import config
from proa_kernels.conv.geometry import Geometry
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
        x, self._padding = geometry.padded(x.float())
        self._x, self._weight = x, weight.float()
        self._columns, self._geometry, self._tamper = columns, geometry, tamper
        self.tiling = Tiling(geometry.groups, weight.shape[0] // geometry.groups)
        self.inner = weight[0].numel()
        self.scales = scales.amin(0)
        self.bias = None if bias is None else bias.float()
        self._kernel: tuple[int, int] = (weight.shape[2], weight.shape[3])
        sizes = zip(
            x.shape[2:],
            self._kernel,
            self._padding,
            geometry.stride,
            geometry.dilation,
            strict=True,
        )
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in sizes)
        self._places, self._last = (height, width), False
        self._sums: torch.Tensor | None = None

    def prepare(self) -> None:
        if not len(self._x):
            return
        columns_KGc = joined(self._columns, torch.float32)
        columns_KGc = columns_KGc.view(self.inner, self._geometry.groups, -1)
        if self.tiling.outputs == 1:  # one channel is its own sum: the second one follows of it
            self._checks = self._thin(columns_KGc[:, :, :1])
        elif self._sums_first():
            self._checks, self._sums = self._shifted(columns_KGc)
        else:
            # A third checksum, of ones: its channels cost less than the pass that they spare.
            ones = columns_KGc.new_ones(*columns_KGc.shape[:2], 1)
            found = self._thin(torch.cat([columns_KGc, ones], 2))
            found = found.unflatten(1, (self._geometry.groups, -1))  # type: ignore[no-untyped-call]
            self._checks, self._sums = found[:, :, :-1].flatten(1, 2), found[:, :, -1]

    def compute(self, attempt: int) -> torch.Tensor:
        acc = self._convolve(self._x, self._weight, self.bias, self._geometry.groups)
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
            second = torch.tensor([1.0, 1.0 - 1.0 / TILE], device=checks.device)
            return checks.unsqueeze(2) * second[:, None]
        return checks.view(len(checks), self.tiling.count, 2, checks.shape[2])

    def sums(self) -> torch.Tensor | None:
        return None if self._sums is None else self._by_row(self._sums)

    def squares(self) -> torch.Tensor:
        groups = self._geometry.groups
        seen, simple = self._seen()
        squares = squares_of(seen.flatten(2), groups)
        squares = squares.view(len(seen), groups, *seen.shape[2:])
        if not simple:
            ones = squares.new_ones(groups, 1, *self._kernel)
            squares = self._convolve(squares, ones, None, groups)
        return self._by_row(squares)

    def inputs(self, tile: int, rows_R: torch.Tensor) -> torch.Tensor:
        (height, width), (_, columns) = self._x.shape[2:], self._places
        channels = self._weight.shape[1]
        first = tile // self.tiling.per_group * channels
        place_R = rows_R % (self._places[0] * columns)
        starts = (place_R // columns, place_R % columns)
        at, inside = [], []
        for axis, (start_R, limit) in enumerate(zip(starts, (height, width), strict=True)):
            steps = torch.arange(self._kernel[axis], device=rows_R.device)
            start_R = start_R * self._geometry.stride[axis] - self._padding[axis]
            index_Rk = start_R[:, None] + steps * self._geometry.dilation[axis]
            inside.append((index_Rk >= 0) & (index_Rk < limit))
            at.append(index_Rk.clamp(0, limit - 1))
        image_R = rows_R // (self._places[0] * columns)
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
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int
    ) -> torch.Tensor:
        at = self._geometry
        return conv2d(x, weight, bias, at.stride, self._padding, at.dilation, groups)

    def _by_row(self, values: torch.Tensor) -> torch.Tensor:
        """`[B, n, P, Q]` in the layout of the accumulators: `[B, n, P Q]`, or `[B P Q, n, 1]` where
        the channels lie together."""
        if self._last:
            return values.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(2)
        return values.flatten(2)

    def _seen(self) -> tuple[torch.Tensor, bool]:
        """The input, or the part of it that a kernel of one tap sees; whether it is that."""
        if self._kernel != (1, 1) or self._padding != (0, 0):
            return self._x, False
        rows, columns = self._geometry.stride
        return self._x[:, :, ::rows, ::columns], True

    def _sums_first(self) -> bool:
        if not self._x.is_contiguous():
            return False
        taps = self._kernel[0] * self._kernel[1]
        seen, _ = self._seen()
        sizes = seen.shape[2] * seen.shape[3], self._places[0] * self._places[1]
        return config.sums_first(self._weight.shape[1], 2 * self.tiling.per_group, taps, *sizes)

    def _thin(self, columns_KGc: torch.Tensor) -> torch.Tensor:
        """`[B, G c, P, Q]`: a convolution with the checksums as kernel."""
        kernel = columns_KGc.flatten(1).T.reshape(-1, *self._weight.shape[1:])
        return self._convolve(self._x, kernel, None, self._geometry.groups)

    def _shifted(self, columns_KGc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the sums of the inputs `[B, G, P, Q]`: sums over the channels for each tap
        of the kernel, shifted and added."""
        groups, channels = self._geometry.groups, self._weight.shape[1]
        seen, simple = self._seen()
        batch, _, *sizes = seen.shape
        taps = self._kernel[0] * self._kernel[1]
        by_tap = columns_KGc.view(channels, taps, groups, -1).permute(2, 1, 3, 0)
        left = torch.cat([by_tap.flatten(1, 2), by_tap.new_ones(groups, 1, channels)], 1)
        left = left.expand(batch, -1, -1, -1).flatten(0, 1)
        products = torch.bmm(left, seen.reshape(batch * groups, channels, -1))
        products = products.view(batch, groups, -1, *sizes)
        products, sums = products[:, :, :-1], products[:, :, -1]
        if simple:
            return products.flatten(1, 2), sums
        sums = self._convolve(sums, sums.new_ones(groups, 1, *self._kernel), None, groups)
        products = products.unflatten(2, (taps, -1))  # type: ignore[no-untyped-call]
        out = products.new_zeros(batch, groups, products.shape[3], *self._places)
        for tap in range(taps):
            rows, columns = divmod(tap, self._kernel[1])
            here, there = zip(
                self._overlap(0, rows, sizes[0]), self._overlap(1, columns, sizes[1]), strict=True
            )
            out[..., *here] += products[:, :, tap][..., *there]
        return out.view(batch, -1, *self._places), sums

    def _overlap(self, axis: int, tap: int, size: int) -> tuple[slice, slice]:
        """Output places whose `tap` is inside the input, and where it is."""
        stride = self._geometry.stride[axis]
        shift = tap * self._geometry.dilation[axis] - self._padding[axis]
        first = max(0, -(shift // stride))
        last = min(self._places[axis], (size - 1 - shift) // stride + 1)
        count = max(0, last - first)
        start = first * stride + shift
        stop = start + (count - 1) * stride + 1 if count else start
        return slice(first, first + count), slice(start, stop, stride)
