"""`proa::checked_linear` on a GPU: imported at the first call with tensors there, never before."""

# Device functions: Triton's compiler gives their arguments types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from proa_kernels import verdict
from proa_kernels.errors import KernelError
from proa_kernels.gpu.call import Product, run
from proa_kernels.gpu.launch import Launch, choose

SCHEMES = ("row", "fused", "tile")


@triton.jit
def load_matrix(x_ptr, rows_B, inner_K, M, K, geometry):
    """`[B, K]` of a matrix; `geometry`: its strides."""
    at_BK = rows_B[:, None].to(tl.int64) * geometry[0] + inner_K[None, :] * geometry[1]
    inside_BK = (rows_B[:, None] < M) & (inner_K[None, :] < K)
    return tl.load(x_ptr + at_BK, mask=inside_BK, other=0.0)


@triton.jit
def place_matrix(rows_B, columns_J, N, geometry):  # noqa: ARG001
    """Offsets in a contiguous `[M, N]`."""
    return rows_B[:, None].to(tl.int64) * N + columns_J[None, :]


@torch.no_grad()
def checked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    addend: torch.Tensor | None,
    columns: torch.Tensor,
    scales: torch.Tensor,
    *,
    inner_first: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    correct: bool = False,
    scheme: str = "row",
    launch: Launch | None = None,
    fault: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.checked_linear`, with no synchronisation. `row` and `fused` are the same here.

    `launch`: for profilers; `fault`: for campaigns, see `gpu.faults`. Raises KernelError.
    """
    if scheme not in SCHEMES:
        raise KernelError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    weight_NK = weight.T if inner_first else weight
    outputs, inner = weight_NK.shape
    rows = x.numel() // max(1, x.shape[-1])
    out = x.new_empty((*x.shape[:-1], outputs))
    if not rows or not outputs or not inner:
        return _degenerate(out, addend, beta)
    x_MK = x.reshape(rows, inner)
    addend_MN = None if addend is None or beta == 0.0 else _addend(addend, out, rows)
    launch = launch or choose(rows, outputs, x.dtype)
    sizes = None
    if scheme == "tile" and not launch.sum_sizes:
        sizes = torch.linalg.vector_norm(x_MK, dim=1, dtype=torch.float32)
    product = Product(
        x=x_MK, weight=weight, weight_strides=_pair(weight_NK), columns=columns,
        scales=scales.contiguous(), addend=addend_MN,
        addend_strides=(0, 0) if addend_MN is None else _pair(addend_MN), out=out,
        rows=rows, outputs=outputs, inner=inner, load=load_matrix, place=place_matrix,
        geometry=_pair(x_MK), alpha=alpha, beta=beta, sizes=sizes,
    )  # fmt: skip
    return out, run(product, launch, scheme=scheme, correct=correct, fault=fault)


def _pair(matrix: torch.Tensor) -> tuple[int, int]:
    return matrix.stride(0), matrix.stride(1)


def _addend(addend: torch.Tensor, out: torch.Tensor, rows: int) -> torch.Tensor:
    """`[rows, N]` of what broadcasts to `out`; without a copy for a bias."""
    if addend.dim() <= 1:
        return addend.expand(rows, out.shape[-1])
    return addend.expand(out.shape).reshape(rows, out.shape[-1])


def _degenerate(
    out: torch.Tensor, addend: torch.Tensor | None, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """No rows, no outputs, or sums over nothing: nothing is multiplied, so nothing is checked."""
    out.zero_()
    if addend is not None and beta != 0.0:
        out.add_(addend, alpha=beta)
    return out, verdict.nothing(out.device)
