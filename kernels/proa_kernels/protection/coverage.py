"""The coverage report: which matrix products of a program are checked, and why others are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A matrix product. `layer`: the module path of its weight, with `#2` for a second use, or the
    node's name. `flops` at the report's batch size, None where torch cannot count them. `key`: of
    its checksum. `reason`: why it is not checked, empty where it is."""

    layer: str
    op: str
    dtype: str
    weight: tuple[int, int] | None
    flops: int | None
    scheme: str
    key: str = ""
    reason: str = ""


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
        total = sum(layer.flops or 0 for layer in self.layers)
        return sum(layer.flops or 0 for layer in self.checked) / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "share": self.share}
