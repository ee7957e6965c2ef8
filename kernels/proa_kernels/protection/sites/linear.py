"""linear, addmm, mm and matmul with a constant matrix on the right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from proa_kernels import checksum
from proa_kernels.dup import ops as _dup  # noqa: F401  # registers proa::dup_linear
from proa_kernels.linear import DTYPES
from proa_kernels.protection.sites.base import Call, Site, Stored, operands, refusal
from proa_kernels.protection.sites.constants import Constants


@dataclass(frozen=True)
class LinearSite(Site):
    """`alpha x weight (+ beta addend)`. `value`: the weight as `[N, K]`; the node has it as
    `[K, N]` where `inner_first`."""

    x: Node
    weight_node: Node
    addend: Node | None
    inner_first: bool
    alpha: float
    beta: float
    value: torch.Tensor

    schemes: ClassVar[tuple[str, ...]] = ("row", "tile", "dup")

    def stored(self, scheme: str) -> Stored:
        if scheme == "dup":
            return Stored()
        taken = checksum.take(self.value)
        return Stored(taken.key, {"columns": taken.columns, "scales": taken.scales})

    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:
        options: dict[str, Any] = {
            "inner_first": self.inner_first,
            "alpha": self.alpha,
            "beta": self.beta,
            "correct": correct,
        }
        args = (self.x, self.weight_node, self.addend)
        if scheme == "dup":
            return torch.ops.proa.dup_linear.default, args, options
        stored = (places["columns"], places["scales"])
        options["scheme"] = scheme
        return torch.ops.proa.checked_linear.default, (*args, *stored), options


_Operands = tuple[Node, Node, Node | None, bool, float, float]


def _linear(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["weight"], at["bias"], False, 1.0, 1.0


def _mm(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["mat2"], None, True, 1.0, 0.0


def _matmul(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["other"], None, True, 1.0, 0.0


def _addmm(node: Node) -> _Operands:
    at = operands(node)
    return at["mat1"], at["mat2"], at["input"], True, float(at["alpha"]), float(at["beta"])


def _reader(read: Callable[[Node], _Operands]) -> Callable[[Node, Constants], Site | str]:
    def site(node: Node, constants: Constants) -> Site | str:
        x, weight, addend, inner_first, alpha, beta = read(node)
        found = constants.find(weight)
        if found is None:
            left = constants.find(x) is not None
            return "the weight is the left operand" if left else "no operand is a constant weight"
        value, source = found
        other = x.meta["val"]
        if value.dim() != 2 or other.dim() == 0:
            return "the weight is not a matrix"
        if reason := refusal(value, other, DTYPES):
            return reason
        value = (value.T if inner_first else value).detach()
        return LinearSite(
            node, source, value.dtype, tuple(value.shape),
            x, weight, addend, inner_first, alpha, beta, value,
        )  # fmt: skip

    return site


READERS: Mapping[str, Callable[[Node, Constants], Site | str]] = {
    "linear": _reader(_linear),
    "mm": _reader(_mm),
    "matmul": _reader(_matmul),
    "addmm": _reader(_addmm),
}
