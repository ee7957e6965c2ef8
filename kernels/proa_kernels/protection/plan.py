"""What to check, and what to do about a fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proa_kernels.errors import PlanRefused

MODES = ("detect", "correct")
SCHEMES = ("none", "row", "tile", "dup", "exact")


@dataclass(frozen=True)
class Plan:
    """`mode`: detect says so; correct also recomputes, once. `default`: the scheme of layers that
    `layers` does not name; row stands for an operator's own first scheme where it has no row.
    `strict`: refuse a program with matrix products that cannot be checked. `weights`: the
    `weights_digest` this plan was made for, None for any. Raises PlanRefused."""

    mode: str = "detect"
    default: str = "row"
    layers: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PlanRefused(f"mode {self.mode!r} is not one of {', '.join(MODES)}")
        for name, scheme in (("default", self.default), *self.layers.items()):
            if scheme not in SCHEMES:
                known = ", ".join(SCHEMES)
                raise PlanRefused(f"{name}: scheme {scheme!r} is not one of {known}")

    def scheme(self, layer: str, supported: Sequence[str]) -> str:
        """The scheme of a layer, by its name in the coverage report. Raises PlanRefused."""
        scheme = self.layers.get(layer, self.default)
        if scheme == "none" or scheme in supported:
            return scheme
        if scheme == "row" and layer not in self.layers:
            return supported[0]
        raise PlanRefused(f"{layer}: no scheme {scheme!r} here, only {', '.join(supported)}")

    def check_layers(self, layers: Iterable[str]) -> None:
        """Refuse a plan that names layers the program does not have, or asks to check others."""
        unknown = sorted(self.layers.keys() - set(layers))
        if unknown:
            raise PlanRefused(f"no checkable layer {unknown[0]!r} in this program: another model's")
