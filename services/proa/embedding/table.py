"""What a table of the embedding-parity store is to the torch side."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


class Store(Protocol):
    """What holds tables, and gets rows of many at once."""

    def begin_pull(self, asked: Mapping[str, Ids]) -> Future[dict[str, Rows]]:
        """Rows of tables by name, as `Table.pull` gives them, in the background."""


class Table(Protocol):
    """A table whose rows live in the store. `ids` are distinct and ascending, 0 to rows - 1.

    Errors: ShardUnavailable, DataLost with the ids, InvalidRequest.
    """

    @property
    def store(self) -> Store: ...
    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def dim(self) -> int: ...

    def pull(self, ids: Ids) -> Rows:
        """`[len(ids), dim]`; all acknowledged pushes are in it."""

    def push(self, ids: Ids, gradients: Rows) -> None:
        """Apply the table's optimiser to rows with summed gradients `[len(ids), dim]`.

        Returns when it is under way, at the latest when fewer than the allowed number are."""

    def flush(self) -> None:
        """Return when every push was acknowledged. Raises what one of them met."""

    def export(self) -> dict[str, NDArray[np.float32]]:
        """`weight` `[rows, dim]` and the optimiser's state by its names."""

    def load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace what `export` gives."""
