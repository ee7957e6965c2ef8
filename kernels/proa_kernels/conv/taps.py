"""A convolution whose sums over the channels are made already: shift each tap's part, and add.

Letters as in `geometry`; c values of each group at a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

Pair = tuple[int, int]
Overlap = tuple[slice, slice]


WALKS_MAX = 4096  # kept; others are made anew


@dataclass(frozen=True)
class Walk:
    """How a kernel goes over an input: `sizes` H, W; `padding` on both sides of each."""

    sizes: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @cached_property
    def places(self) -> Pair:
        """P, Q."""
        height, width = (self._places(axis) for axis in range(2))
        return height, width

    def _places(self, axis: int) -> int:
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.sizes[axis] + 2 * self.padding[axis] - span) // self.stride[axis] + 1

    @cached_property
    def even(self) -> bool:
        """Whether input and output are of one size, place by place."""
        return self.stride == (1, 1) and self.places == self.sizes

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """Where `even`: for each tap that the output sees, the first place, where its input is,
        and how many follow, all in one dimension."""
        height, width = self.sizes
        found = []
        for tap in range(self.kernel[0] * self.kernel[1]):
            row, column = divmod(tap, self.kernel[1])
            shift = self.shift(0, row) * width + self.shift(1, column)
            count = max(0, height * width - abs(shift))
            found.append((max(0, -shift), max(0, shift), count))
        return tuple(found)

    def shift(self, axis: int, tap: int) -> int:
        """Where the first place finds this tap."""
        return tap * self.dilation[axis] - self.padding[axis]

    @cached_property
    def overlaps(self) -> tuple[tuple[Overlap, ...], ...]:
        """Of each tap, for both axes: the output places for which it is inside the input, and where
        it is."""
        return tuple(
            tuple(self._overlap(axis, tap) for tap in range(self.kernel[axis])) for axis in range(2)
        )

    def _overlap(self, axis: int, tap: int) -> Overlap:
        stride, shift = self.stride[axis], self.shift(axis, tap)
        first = max(0, -(shift // stride))
        last = min(self.places[axis], (self.sizes[axis] - 1 - shift) // stride + 1)
        count = max(0, last - first)
        start = first * stride + shift
        stop = start + (count - 1) * stride + 1 if count else start
        return slice(first, first + count), slice(start, stop, stride)


walk_of = lru_cache(WALKS_MAX)(Walk)


def box(values: torch.Tensor, walk: Walk) -> torch.Tensor:
    """`[B, G, P, Q]`: sums of `values` `[B, G, H, W]` over the kernel's taps."""
    for axis in (0, 1):  # rows first: with a stride, fewer values are left for the slower way
        shape = list(values.shape)
        shape[2 + axis] = walk.places[axis]
        out = values.new_zeros(shape)
        before: tuple[slice, ...] = (slice(None),) * (2 + axis)
        for here, there in walk.overlaps[axis]:
            out[(*before, here)].add_(values[(*before, there)])
        values = out
    return values


def added(products: torch.Tensor, walk: Walk) -> torch.Tensor:
    """`[B, G, c, P, Q]` of `[B, G, R, S, c, H, W]`, which may be spoiled."""
    batch, groups, *_, count, _, _ = products.shape
    if walk.even:
        return _flat(products, walk)
    out = products.new_zeros(batch, groups, count, *walk.places)
    for row, (here_P, there_H) in enumerate(walk.overlaps[0]):
        for column, (here_Q, there_W) in enumerate(walk.overlaps[1]):
            part = products[:, :, row, column]
            out[..., here_P, here_Q].add_(part[..., there_H, there_W])
    return out


def _flat(products: torch.Tensor, walk: Walk) -> torch.Tensor:
    """The same where input and output are of one size: shifts in one dimension, over long runs. A
    tap to the left or right goes over the border into the next row: there it is set to zero."""
    width = walk.sizes[1]
    for column in range(walk.kernel[1]):
        shift = walk.shift(1, column)
        over = min(abs(shift), width)
        if over:
            first = 0 if shift > 0 else width - over
            products.select(3, column).narrow(-1, first, over).zero_()
    out: torch.Tensor | None = None
    flat = products.flatten(-2).flatten(2, 3)
    for part, (here, there, count) in zip(flat.unbind(2), walk.runs, strict=True):
        if out is None:
            out = part.new_zeros(part.shape)
        if count:
            out.narrow(-1, here, count).add_(part.narrow(-1, there, count))
    assert out is not None
    return out.view(*out.shape[:-1], *walk.sizes)
