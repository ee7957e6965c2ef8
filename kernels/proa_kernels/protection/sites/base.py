"""A site: one product of a program that can be checked. One module here per kind of operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.operator_schemas import normalize_function

Call = tuple[OpOverload, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Stored:
    """What a site keeps in the program: each tensor as the constant `proa_check_KEY_SUFFIX`, once
    for all sites of that key. `key`: a hash of what it was taken of, empty without tensors."""

    key: str = ""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Site(ABC):
    """`source`: the name of the weight, or of the node where none is constant; the report's name
    comes of it. `weight`: its shape in the report. `schemes`: the first is the default one.
    `covers`: class in the report, gemm, attention or integer."""

    node: Node
    source: str
    dtype: torch.dtype
    weight: tuple[int, ...] | None

    schemes: ClassVar[tuple[str, ...]] = ("row",)
    covers: ClassVar[str] = "gemm"

    @abstractmethod
    def stored(self, scheme: str) -> Stored:
        """What this scheme needs besides the program's own tensors. Raises WeightsRefused."""

    @abstractmethod
    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:
        """The operator that gives (out, verdict) and its arguments: nodes of the program as the
        site found them, and `places`: suffix of what is stored -> its node."""


def operands(node: Node) -> dict[str, Any]:
    """Arguments by their names in the schema (`self` is `input`), defaults included."""
    assert callable(node.target)
    found = normalize_function(
        node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True
    )
    assert found is not None
    return found.kwargs


def refusal(value: torch.Tensor, other: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> str:
    """Why a weight cannot be checked beside the other operand (real or fake), or nothing."""
    if value.dtype not in dtypes or other.dtype != value.dtype:
        return f"no check for {str(value.dtype).removeprefix('torch.')}"
    if not value.numel():
        return "the weight is empty"
    if value.layout != torch.strided or value.is_quantized:
        return "the weight is sparse or quantised"
    return ""
