"""The checksums of a kernel as a convolution multiplies with them, made once a layer.

Letters as in `geometry`; c check values of one group at one place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proa_kernels.checksum import joined
from proa_kernels.rowcheck import Memo

_FILTERS: Memo[torch.Tensor] = Memo()
_BLOCKS: Memo[torch.Tensor] = Memo()
_BY_TAP: Memo[torch.Tensor] = Memo()


def filters(
    columns: torch.Tensor, groups: int, shape: Sequence[int], *, ones: bool
) -> torch.Tensor:
    """A kernel `[G c, *shape]` of the stored `columns`; with `ones`, one more filter a group, of
    ones: its result is the sum of the inputs. Without them, a group of one channel has one, c1."""

    def make() -> torch.Tensor:
        columns_KGc = joined(columns, torch.float32)
        columns_KGc = columns_KGc.view(len(columns_KGc), groups, -1)
        one_KG1 = columns_KGc.new_ones(*columns_KGc.shape[:2], 1)
        columns_KGc = torch.cat([columns_KGc, one_KG1], 2) if ones else columns_KGc[:, :, :1]
        return columns_KGc.flatten(1).T.reshape(-1, *shape).contiguous()

    found = _FILTERS.of(make, columns, key=(groups, *shape, ones))
    if ones:
        _renew(found.view(groups, -1, *shape))
    return found


def block_filters(
    columns: torch.Tensor, shape: Sequence[int], stride: Sequence[int], block: tuple[int, int]
) -> torch.Tensor:
    """A kernel `[rows columns c, C, R', S']` of one group: the checksums of a whole `block` of
    places, each in its place of a larger kernel, with zeros around."""
    rows, steps = block

    def make() -> torch.Tensor:
        one = joined(columns, torch.float32).T.reshape(-1, *shape)
        channels, height, width = shape
        size = height + stride[0] * (rows - 1), width + stride[1] * (steps - 1)
        found = one.new_zeros(rows, steps, len(one), channels, *size)
        for row in range(rows):
            for step in range(steps):
                top, left = row * stride[0], step * stride[1]
                found[row, step, ..., top : top + height, left : left + width] = one
        return found.flatten(0, 2)

    return _BLOCKS.of(make, columns, key=(*shape, *stride, *block))


def by_tap(columns: torch.Tensor, groups: int, channels: int) -> torch.Tensor:
    """A matrix `[G, taps c + 1, C / G]`: the checksums of each tap, and ones."""

    def make() -> torch.Tensor:
        columns_CtGc = joined(columns, torch.float32).view(
            channels, -1, groups, columns.shape[2] // groups
        )
        left = columns_CtGc.permute(2, 1, 3, 0).flatten(1, 2)
        return torch.cat([left, left.new_ones(groups, 1, channels)], 1)

    found = _BY_TAP.of(make, columns, key=(groups, channels))
    _renew(found)
    return found


def _renew(values: torch.Tensor) -> None:
    """The ones: one that grew in memory would raise the limit, and hide faults."""
    values[:, -1].fill_(1.0)
