"""Products of int8 matrices: `_int_mm`, with a constant weight and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from proa_kernels import checksum, integer
from proa_kernels.protection.sites.base import Call, Site, Stored, operands
from proa_kernels.protection.sites.constants import Constants


@dataclass(frozen=True)
class IntegerSite(Site):
    """`value`: the weight as `[K, N]`, None where it is computed."""

    x: Node
    weight_node: Node
    value: torch.Tensor | None

    schemes: ClassVar[tuple[str, ...]] = ("exact",)
    covers: ClassVar[str] = "integer"

    def stored(self, scheme: str) -> Stored:  # noqa: ARG002
        if self.value is None:
            return Stored()
        return Stored(checksum.key_of(self.value), {"columns": integer.take(self.value)})

    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:  # noqa: ARG002
        args = (self.x, self.weight_node, places.get("columns"))
        return torch.ops.proa.checked_int_mm.default, args, {"correct": correct}


def _int_mm(node: Node, constants: Constants) -> Site | str:
    at = operands(node)
    x, weight = at["input"], at["mat2"]
    if any(one.meta["val"].dtype != torch.int8 for one in (x, weight)):
        return "an operand is not int8"
    found = constants.find(weight)
    if found is None:
        return IntegerSite(node, node.name, torch.int8, None, x, weight, None)
    value = found[0].detach()
    shape = tuple(value.T.shape)
    return IntegerSite(node, found[1], torch.int8, shape, x, weight, value)


READERS: Mapping[str, Callable[[Node, Constants], Site | str]] = {"_int_mm": _int_mm}
