"""What the row check has to know of a product.

Letters, here and in this package: accumulators `[B, N, P]`, N output columns; the row of (b, p) is
b P + p. A matrix has P = 1; a convolution that lies as NCHW has its places in P. T tiles of at
most TILE columns, J of them in one; G groups of columns with inputs of their own; K inner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from proa_kernels.checksum import TILE


@dataclass(frozen=True)
class Tiling:
    """Tiles of the output columns: those of group 0, then those of group 1, ..."""

    groups: int
    outputs: int  # of one group

    @property
    def per_group(self) -> int:
        return -(-self.outputs // TILE)

    @property
    def count(self) -> int:
        return self.groups * self.per_group

    def span(self, tile: int) -> slice:
        """The columns of a tile."""
        group, at = divmod(tile, self.per_group)
        start = group * self.outputs + at * TILE
        return slice(start, min(start + TILE, (group + 1) * self.outputs))

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """First column, number of tiles and their width: tiles of one width that lie together."""
        if self.outputs <= TILE or self.outputs % TILE == 0:
            yield 0, self.count, min(TILE, self.outputs)
            return
        for tile in range(self.count):
            span = self.span(tile)
            yield span.start, 1, span.stop - span.start


class Product(ABC):
    """One product whose operands are at hand in fp32."""

    tiling: Tiling
    inner: int
    stored: torch.Tensor  # `[2, T, 3]` fp64: |W_t|_F, |c1|, |c2|, twice
    bias: torch.Tensor | None = None  # `[N]` fp32, added by the product itself

    @property
    def scales(self) -> torch.Tensor:
        """`[T, 3]`: of each the smaller one."""
        return self.stored.amin(0)

    @abstractmethod
    def prepare(self) -> None:
        """Called before the product: what it reads of the inputs is still in the caches."""

    @abstractmethod
    def compute(self, attempt: int) -> torch.Tensor:
        """The accumulators, fp32, as the operator returns them; attempt 1 is the second time."""

    @abstractmethod
    def rows(self, acc: torch.Tensor) -> torch.Tensor:
        """The view `[B, N, P]` of accumulators."""

    @abstractmethod
    def checksums(self) -> torch.Tensor:
        """Inputs times checksums, `[B, T, 2, P]`, fp32, without the bias."""

    def sums(self) -> torch.Tensor | None:
        """The sum of the inputs of each row, `[B, 1 or G, P]`, fp32, or None: where it comes with
        the checksums it spares the pass for `squares`, which is then asked for if it must be."""
        return None

    @abstractmethod
    def squares(self) -> torch.Tensor:
        """|a|^2 of each row, `[B, 1 or G, P]`, fp32."""

    @abstractmethod
    def inputs(self, tile: int, rows_R: torch.Tensor) -> torch.Tensor:
        """fp64 `[R, K]`: what these rows of the tile multiply."""

    @abstractmethod
    def weights(self, tile: int) -> torch.Tensor:
        """fp64 `[J, K]`."""

    @abstractmethod
    def columns(self, tile: int) -> torch.Tensor:
        """fp64 `[K, 2]`, the tile's stored checksums."""
