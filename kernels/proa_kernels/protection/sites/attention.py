"""torch's scaled_dot_product_attention, a class of its own in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from proa_kernels import attention as _attention_ops  # noqa: F401  # registers the operators
from proa_kernels.linear import DTYPES
from proa_kernels.protection.sites.base import Call, Site, Stored, operands
from proa_kernels.protection.sites.constants import Constants


@dataclass(frozen=True)
class AttentionSite(Site):
    """`scale` None: one over the root of the query's width."""

    query: Node
    key: Node
    value: Node
    mask: Node | None
    causal: bool
    scale: float | None

    schemes: ClassVar[tuple[str, ...]] = ("row", "dup")
    covers: ClassVar[str] = "attention"

    def stored(self, scheme: str) -> Stored:  # noqa: ARG002  # sums are taken in the call
        return Stored()

    def call(self, scheme: str, correct: bool, places: Mapping[str, Node]) -> Call:  # noqa: ARG002
        ops = {"row": torch.ops.proa.checked_attention, "dup": torch.ops.proa.dup_attention}
        options = {"causal": self.causal, "scale": self.scale, "correct": correct}
        args = (self.query, self.key, self.value, self.mask)
        return ops[scheme].default, args, options


def _attention(node: Node, constants: Constants) -> Site | str:  # noqa: ARG001
    at = operands(node)
    query, key, value, mask = (at[one] for one in ("query", "key", "value", "attn_mask"))
    if at["dropout_p"]:
        return "dropout is random: no second computation can confirm it"
    found = [one.meta["val"] for one in (query, key, value)]
    if found[0].dtype not in DTYPES or any(one.dtype != found[0].dtype for one in found):
        return f"no check for {str(found[0].dtype).removeprefix('torch.')}"
    if found[0].dim() < 3 or any(one.dim() != found[0].dim() for one in found):
        return "query, key and value have no common batch"
    leads = [one.shape[:-3] if at["enable_gqa"] else one.shape[:-2] for one in found]
    if leads[0] != leads[1] or leads[0] != leads[2]:
        return "query, key and value have no common batch"
    return AttentionSite(
        node, node.name, found[0].dtype, None,
        query, key, value, mask, bool(at["is_causal"]), at["scale"],
    )  # fmt: skip


READERS: Mapping[str, Callable[[Node, Constants], Site | str]] = {
    "scaled_dot_product_attention": _attention,
}
