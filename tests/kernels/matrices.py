"""Checked products of the campaign's distributions, and faults in them."""

from __future__ import annotations

import torch

from proa.integrity.campaign.distributions import DEGENERATE, KINDS, REGULAR, Sizes, operands
from proa_kernels import Verdict
from proa_kernels.checksum import Checksum, take
from proa_kernels.linear import checked_product

__all__ = ["DEGENERATE", "KINDS", "REGULAR", "Sizes", "flip_each_row", "operands", "product"]


def product(
    x: torch.Tensor, weight: torch.Tensor, check: Checksum | None = None, **options: object
) -> tuple[torch.Tensor, Verdict]:
    """The checked product with a checksum of the weight as it is, or as it was."""
    check = check or take(weight)
    options = {"correct": False, **options}
    acc, found = checked_product(x, weight, check.columns, check.scales, **options)  # type: ignore[arg-type]
    return acc, Verdict.read(found)


def flip_each_row(acc: torch.Tensor, columns: torch.Tensor, bits: int) -> None:
    """XOR one element of each row of fp32 accumulators."""
    signed = bits - (1 << 32) if bits >> 31 else bits
    acc.view(torch.int32)[torch.arange(len(acc)), columns] ^= signed
