"""Launches of one checked call: nothing here waits for the device or reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from proa_kernels.checksum import TILE
from proa_kernels.gpu.columns import packed
from proa_kernels.gpu.launch import Launch
from proa_kernels.gpu.product import product_kernel, thin_kernel
from proa_kernels.gpu.settle import settle_kernel
from proa_kernels.gpu.workspace import Workspace
from proa_kernels.linear import config


@dataclass(frozen=True)
class Product:
    """`out = alpha x @ w.T + beta addend`, `[rows, outputs]` by `place`, of x read by `load`.

    `weight_strides`: of outputs and inner, in elements, from `weight`'s first element;
    `addend_strides`: of rows and outputs; `load`, `place`, `geometry`: see `gpu.product`.
    `columns`, `scales`: the checksum of `[outputs, inner]` weights. `sizes`: fp32 `[rows]`, the
    2-norms of x's rows where they are known, else None. `rows`, `outputs`, `inner` at least 1.
    """

    x: torch.Tensor
    weight: torch.Tensor
    weight_strides: tuple[int, int]
    columns: torch.Tensor
    scales: torch.Tensor
    addend: torch.Tensor | None
    addend_strides: tuple[int, int]
    out: torch.Tensor
    rows: int
    outputs: int
    inner: int
    load: Any
    place: Any
    geometry: tuple[int, ...]
    alpha: float
    beta: float
    sizes: torch.Tensor | None = None


def run(
    product: Product, launch: Launch, *, scheme: str, correct: bool, fault: torch.Tensor | None
) -> torch.Tensor:
    """Fills `product.out` and gives its verdict, fp64 `[8]`. `scheme`: tile, else as `fused`.

    `fault`: see `gpu.faults`; None in production, which selects kernels without an injector.
    """
    one = product
    tiles = -(-one.outputs // TILE)
    work = Workspace.of(one.rows, tiles, launch.block_m, one.x.device)
    columns = packed(one.columns, one.x.dtype)
    tensor_cores = one.x.is_cuda and one.x.dtype != torch.float32
    limits = (
        config.noise(one.inner, tensor_cores=tensor_cores),
        config.floor(one.inner),
        config.split_floor(one.inner),
    )
    check = scheme == "tile"
    common = {
        "LOAD": one.load, "PLACE": one.place, "USED": columns.used, "WIDTH": columns.width,
        "BM": launch.block_m, "BN": launch.block_n, "BK": launch.block_k, "TILE": TILE,
        "PRECISION": "ieee", "INJECT": fault is not None,
        "num_warps": launch.warps, "num_stages": launch.stages,
    }  # fmt: skip
    blocks = -(-one.rows // launch.block_m)
    product_kernel[(blocks * tiles,)](
        one.x, one.weight, columns.values, columns.units, one.scales, one.sizes, one.addend,
        one.out, work.peaks, work.notes, work.counter, fault, one.rows, one.outputs, one.inner,
        one.weight_strides, one.addend_strides, one.geometry, limits, one.alpha, one.beta,
        CHECK=check, GROUP=launch.group, **common,
    )  # fmt: skip
    if not check:
        thin_kernel[(blocks, -(-tiles // launch.thin_tiles))](
            one.x, columns.values, columns.units, one.scales, work.peaks, work.notes, one.rows,
            one.inner, tiles, one.geometry, limits,
            LOAD=one.load, WIDTH=columns.width, BM=launch.block_m, BT=launch.thin_tiles,
            BK=launch.block_k, PRECISION="ieee", num_warps=4, num_stages=launch.stages,
        )  # fmt: skip
    programs = len(work.parts)
    settle_kernel[(programs,)](
        one.x, one.weight, columns.values, columns.units, one.scales, one.addend, one.out,
        work.peaks, work.notes, work.parts, work.counter, work.verdict, fault, one.rows,
        one.outputs, one.inner, one.rows * tiles, one.weight_strides, one.addend_strides,
        one.geometry, limits, config.bound(one.inner, tensor_cores=tensor_cores), one.alpha,
        one.beta,
        CORRECT=correct, PROGRAMS=max(2, 1 << (programs - 1).bit_length()), **common,
    )  # fmt: skip
    return work.verdict
