"""Checksums of a convolution's kernel: those of a matrix, for each group."""

from __future__ import annotations

import hashlib

import torch

from proa_kernels import checksum
from proa_kernels.checksum import Checksum


def take(weight: torch.Tensor, groups: int) -> Checksum:
    """Of a kernel `[N, C / G, ...]`: the tiles of group 0, then those of group 1, ...; c1 and c2
    over K = C / G R S in the kernel's order. Raises WeightsRefused."""
    parts = [checksum.take(part.flatten(1)) for part in weight.chunk(groups)]
    return Checksum(
        torch.cat([part.columns for part in parts], 2),
        torch.cat([part.scales for part in parts], 1),
        key_of(weight, groups),
    )


def key_of(weight: torch.Tensor, groups: int) -> str:
    """As `checksum.key_of`; the same kernel has other checksums with other groups."""
    digest = hashlib.sha256(f"conv {groups} {checksum.key_of(weight)}".encode())
    return digest.hexdigest()[: checksum.KEY_LENGTH]
