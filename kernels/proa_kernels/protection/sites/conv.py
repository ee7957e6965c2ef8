"""conv1d, conv2d and convolution with a constant kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from proa_kernels.conv import DTYPES
from proa_kernels.conv.checksum import take
from proa_kernels.conv.geometry import may_crash, same_padding
from proa_kernels.dup import ops as _dup  # noqa: F401  # registers proa::dup_conv2d
from proa_kernels.protection.sites.base import Call, Site, Stored, operands, refusal
from proa_kernels.protection.sites.constants import Constants


@dataclass(frozen=True)
class ConvSite(Site):
    """A convolution of one or two dimensions. `padding`: before and after, for each."""

    x: Node
    weight_node: Node
    bias: Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    value: torch.Tensor

    schemes: ClassVar[tuple[str, ...]] = ("row", "tile", "dup")

    def stored(self, scheme: str) -> Stored:
        if scheme == "dup":
            return Stored()
        taken = take(self.value, self.groups)
        return Stored(taken.key, {"columns": taken.columns, "scales": taken.scales})

    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:
        options: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "correct": correct,
        }
        args = (self.x, self.weight_node, self.bias)
        if scheme == "dup":
            return torch.ops.proa.dup_conv2d.default, args, options
        stored = (places["columns"], places["scales"])
        options["scheme"] = scheme
        return torch.ops.proa.checked_conv2d.default, (*args, *stored), options


def _site(node: Node, constants: Constants) -> Site | str:
    at = operands(node)
    found = constants.find(at["weight"])
    if found is None:
        return "the kernel is not constant"
    value, source = found
    other = at["input"].meta["val"]
    if at.get("transposed"):
        return "transposed convolutions are not checked in this version"
    dimensions = value.dim() - 2
    if dimensions not in (1, 2) or other.dim() != value.dim():
        return "neither a batch of images nor one of rows"
    if reason := refusal(value, other, DTYPES):
        return reason
    stride, dilation = (_each(at[name], dimensions) for name in ("stride", "dilation"))
    padding = _padding(at["padding"], list(value.shape[2:]), dilation)
    if may_crash(value.shape[2:], padding):
        return "a kernel of one tap with padding, where torch's own convolution may crash"
    return ConvSite(
        node, source, value.dtype, tuple(value.shape),
        at["input"], at["weight"], at["bias"],
        stride, padding, dilation, int(at["groups"]), value.detach(),
    )  # fmt: skip


def _each(given: Any, dimensions: int) -> list[int]:
    values = [int(one) for one in (given if isinstance(given, list | tuple) else [given])]
    return values * dimensions if len(values) == 1 else values


def _padding(given: Any, kernel: list[int], dilation: list[int]) -> list[int]:
    if given == "same":
        return same_padding(kernel, dilation)
    values = [0] * len(kernel) if given == "valid" else _each(given, len(kernel))
    return [value for value in values for _ in range(2)]


READERS: Mapping[str, Callable[[Node, Constants], Site | str]] = dict.fromkeys(
    ("conv1d", "conv2d", "convolution", "_convolution"), _site
)
