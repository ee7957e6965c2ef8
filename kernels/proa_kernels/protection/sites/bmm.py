"""Products of two computed matrices, or of one whose weight is on the left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from proa_kernels import bmm as _bmm_ops  # noqa: F401  # registers the operators
from proa_kernels.linear import DTYPES
from proa_kernels.protection.sites.base import Call, Site, Stored, operands
from proa_kernels.protection.sites.constants import Constants


@dataclass(frozen=True)
class BmmSite(Site):
    """`alpha x @ y (+ beta addend)`; the node has y transposed where `transposed`."""

    x: Node
    y: Node
    addend: Node | None
    transposed: bool
    alpha: float
    beta: float

    schemes: ClassVar[tuple[str, ...]] = ("row", "dup")

    def stored(self, scheme: str) -> Stored:  # noqa: ARG002  # sums are taken in the call
        return Stored()

    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:  # noqa: ARG002
        ops = {"row": torch.ops.proa.checked_bmm, "dup": torch.ops.proa.dup_bmm}
        options = {
            "transposed": self.transposed,
            "alpha": self.alpha,
            "beta": self.beta,
            "correct": correct,
        }
        return ops[scheme].default, (self.x, self.y, self.addend), options


_Operands = tuple[Node, Node, Node | None, bool, float, float]


def _linear(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["weight"], at["bias"], True, 1.0, 1.0


def _mm(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["mat2"], None, False, 1.0, 0.0


def _matmul(node: Node) -> _Operands:
    at = operands(node)
    return at["input"], at["other"], None, False, 1.0, 0.0


def _addmm(node: Node) -> _Operands:
    at = operands(node)
    return at["mat1"], at["mat2"], at["input"], False, float(at["alpha"]), float(at["beta"])


def _baddbmm(node: Node) -> _Operands:
    at = operands(node)
    return at["batch1"], at["batch2"], at["input"], False, float(at["alpha"]), float(at["beta"])


def _reader(read: Callable[[Node], _Operands]) -> Callable[[Node, Constants], Site | str]:
    def site(node: Node, constants: Constants) -> Site | str:
        x, y, addend, transposed, alpha, beta = read(node)
        one, two = x.meta["val"], y.meta["val"]
        if one.dtype not in DTYPES or two.dtype != one.dtype:
            return f"no check for {str(two.dtype).removeprefix('torch.')}"
        if one.layout != torch.strided or two.layout != torch.strided:
            return "an operand is sparse"
        if one.dim() + two.dim() < 3 or min(one.dim(), two.dim() - transposed) < 1:
            return "an operand is not a matrix"
        known = constants.find(y)
        if known is not None and not known[0].numel():
            return "the weight is empty"
        return BmmSite(node, node.name, one.dtype, None, x, y, addend, transposed, alpha, beta)

    return site


READERS: Mapping[str, Callable[[Node, Constants], Site | str]] = {
    "linear": _reader(_linear),
    "mm": _reader(_mm),
    "bmm": _reader(_mm),
    "matmul": _reader(_matmul),
    "addmm": _reader(_addmm),
    "baddbmm": _reader(_baddbmm),
}
