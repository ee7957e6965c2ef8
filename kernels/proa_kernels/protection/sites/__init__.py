"""Where a program has products that can be checked.

A kind of operator is one module here with `READERS`: the operator's name without overload -> the
site at its node, or why there is none. Where two kinds know an operator (matmul, with a constant
weight and without) they are asked in the order below; the last one's reason goes to the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.fx import Node

from proa_kernels.protection.flops import name_of
from proa_kernels.protection.sites import attention, bmm, conv, int8, linear
from proa_kernels.protection.sites.base import Call, Site, Stored, operands, refusal
from proa_kernels.protection.sites.constants import Constants

Reader = Callable[[Node, Constants], Site | str]
_KINDS: tuple[Mapping[str, Reader], ...] = (
    linear.READERS,
    conv.READERS,
    bmm.READERS,
    attention.READERS,
    int8.READERS,
)

__all__ = ["Call", "Constants", "Reader", "Site", "Stored", "find_site", "operands", "refusal"]


def find_site(node: Node, constants: Constants) -> Site | str:
    """The site at a product's node, or why there is none."""
    readers = [kind[name_of(node)] for kind in _KINDS if name_of(node) in kind]
    if not readers:
        return "no check for this operator in this version"
    found = [reader(node, constants) for reader in readers]
    return next((one for one in found if isinstance(one, Site)), found[-1])
