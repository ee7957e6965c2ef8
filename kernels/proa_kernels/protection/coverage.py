"""The coverage report: which matrix products of a program are checked, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A matrix product. `layer`: the module path of its weight, with `#2` for a second use, or the
    node's name. `flops` at the report's batch size, None where torch cannot count them. `key`: of
    its checksum. `reason`: why it is not checked, empty where it is. `covers`: its class: gemm,
    attention or integer."""

    layer: str
    op: str
    dtype: str
    weight: tuple[int, ...] | None
    flops: int | None
    scheme: str
    key: str = ""
    reason: str = ""
    covers: str = "gemm"


@dataclass(frozen=True)
class Coverage:
    """`layers` in the order of the program. FLOPs are those of matrix products alone: what is
    between them (activations, norms, softmax, pooling) is neither counted nor checked."""

    mode: str
    batch: int
    weights: str
    layers: tuple[Layer, ...]

    @property
    def checked(self) -> tuple[Layer, ...]:
        """Layer i here has row 1 + i of the verdict."""
        return tuple(layer for layer in self.layers if layer.scheme != "none")

    @property
    def unchecked(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.scheme == "none")

    @property
    def share(self) -> float:
        """Share of the counted FLOPs that is checked, 0 to 1; 1 where there is nothing to check."""
        return _share(self.layers)

    @property
    def shares(self) -> dict[str, float]:
        """The same for each class of products in the program."""
        classes = sorted({layer.covers for layer in self.layers})
        return {
            one: _share([layer for layer in self.layers if layer.covers == one]) for one in classes
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "share": self.share, "shares": self.shares}


def _share(layers: Sequence[Layer]) -> float:
    total = sum(layer.flops or 0 for layer in layers)
    checked = sum(layer.flops or 0 for layer in layers if layer.scheme != "none")
    return checked / total if total else 1.0
