"""fp32 matrix products from bf16 products: the definition, in plain torch for any device.

Letters: M rows, N columns, K inner. Method: Henry, Tang, Heinecke 2019 (arXiv 1904.06376), with the
scaled split, smallest band first and the periodic promotion of NVIDIA's 9xBF16 kernel in CUTLASS.
Deterministic where torch's fp32 product of one shape is.
"""

from __future__ import annotations

import torch

from proa_kernels.emulated import config
from proa_kernels.errors import KernelError

_BF16_MAX = torch.finfo(torch.bfloat16).max


def split(x: torch.Tensor) -> torch.Tensor:
    """bf16 `[3, *shape]` of fp32 `x`: `x = p0 + 2^-8 p1 + 2^-16 p2`, exact for every finite x.

    NaN and Inf stay in p0 alone.
    """
    finite = torch.isfinite(x)
    rest, found = torch.where(finite, x, 0.0), []
    for _ in range(config.PARTS):
        # Saturating: the largest fp32 would round to Inf.
        part = rest.clamp(-_BF16_MAX, _BF16_MAX).to(torch.bfloat16)
        found.append(part)
        rest = (rest - part.float()) * 2.0**config.STEP
    found[0] = torch.where(finite, found[0], x.to(torch.bfloat16))
    return torch.stack(found)


def joined(parts: torch.Tensor) -> torch.Tensor:
    """fp64 `[*shape]` of the `[parts, *shape]` of `split`."""
    scaled = [part.double() * 2.0 ** (-config.STEP * i) for i, part in enumerate(parts)]
    return torch.stack(scaled).sum(0)


def shifts(x_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: the power of two that takes its largest value to 2^TOP, int32, and whether the row
    is special: not finite, or with a value too small for the split to keep all its bits."""
    bits = x_RK.contiguous().view(torch.int32) & 0x7FFFFFFF
    if not x_RK.shape[1]:
        nothing = torch.zeros(len(x_RK), dtype=torch.int32, device=x_RK.device)
        return nothing, nothing.bool()
    top = bits.amax(1) >> 23
    least = torch.where(bits == 0, 0x7FFFFFFF, bits).amin(1) >> 23
    shift = (config.TOP + 127 - top).clamp(max=config.SHIFT_MAX)
    exponent = torch.where(least == 0, -149, least - 127)  # of the smallest value, at least
    special = (top == 255) | (exponent + shift < config.BOTTOM)
    return torch.where((top == 0) & (least == 255) | (top == 255), 0, shift), special


def power(exponent: torch.Tensor) -> torch.Tensor:
    """fp32 2^exponent, exact, for int32 exponents from -126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)


def unscale(acc_MN: torch.Tensor, shift_M: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """Undo both shifts in two steps of one sign: neither overflows where the result does not."""
    total_MN = -(shift_M[:, None] + shift_N[None, :])
    half_MN = total_MN >> 1
    return acc_MN * power(half_MN) * power(total_MN - half_MN)


def emulated_product(
    a_MK: torch.Tensor,
    b_KN: torch.Tensor,
    products: int,
    *,
    promote: int = config.PROMOTE,
    truncating: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 `a @ b` `[M, N]` and how many of its tiles fell back to fp32 arithmetic, int32 `[1]`.

    `products`: 3, 6 or 9. `promote`: inner terms summed before an fp32 addition. `truncating`:
    round towards zero inside, as tensor cores do (slow: for measuring accuracy).
    Raises KernelError where operands do not fit.
    """
    accept(a_MK, b_KN, products)
    shift_M, special_M = shifts(a_MK)
    shift_N, special_N = shifts(b_KN.T)
    a_PMK = _folded(a_MK * power(shift_M)[:, None], products)
    b_PKN = _folded(b_KN * power(shift_N)[None, :], products)
    acc_MN = a_MK.new_zeros(a_MK.shape[0], b_KN.shape[1])
    add = _truncated if truncating else _rounded
    for start in range(0, a_MK.shape[1], promote):
        sum_MN = torch.zeros_like(acc_MN)
        inner = slice(start, start + promote)
        for i, j in config.ORDER[products]:
            sum_MN = add(sum_MN, a_PMK[i][:, inner], b_PKN[j][inner])
        acc_MN += sum_MN
    out_MN = unscale(acc_MN, shift_M, shift_N)
    return out_MN, _fall_back(out_MN, a_MK, b_KN, special_M, special_N)


def accept(a_MK: torch.Tensor, b_KN: torch.Tensor, products: int) -> None:
    """Raises KernelError where the operands or the number of products do not go together."""
    if products not in config.ORDER:
        raise KernelError(f"products is {products}, not one of 3, 6, 9")
    for name, one in (("a", a_MK), ("b", b_KN)):
        if one.dtype != torch.float32 or one.dim() != 2:
            raise KernelError(f"{name} is {one.dtype} {tuple(one.shape)}, not a matrix of fp32")
    if a_MK.shape[1] != b_KN.shape[0]:
        raise KernelError(f"a has {a_MK.shape[1]} inner, b has {b_KN.shape[0]}")


def _folded(x: torch.Tensor, products: int) -> torch.Tensor:
    """fp32 `[parts, *shape]` with the scales in: exact, since rows were scaled to 2^TOP."""
    count = config.parts(products)
    return torch.stack(
        [part.float() * 2.0 ** (-config.STEP * i) for i, part in enumerate(split(x)[:count])]
    )


def _rounded(sum_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    return torch.addmm(sum_MN, a_MK, b_KN)


def _truncated(sum_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """Model of a tensor core: CHUNK products and the sum are added exactly, then cut to 24 bits."""
    for start in range(0, a_MK.shape[1], config.CHUNK):
        inner = slice(start, start + config.CHUNK)
        exact_MN = sum_MN.double() + a_MK[:, inner].double() @ b_KN[inner].double()
        near_MN = exact_MN.float()
        past_MN = near_MN.abs().double() > exact_MN.abs()
        sum_MN = torch.where(past_MN, torch.nextafter(near_MN, torch.zeros_like(near_MN)), near_MN)
    return sum_MN


def _fall_back(
    out_MN: torch.Tensor,
    a_MK: torch.Tensor,
    b_KN: torch.Tensor,
    special_M: torch.Tensor,
    special_N: torch.Tensor,
) -> torch.Tensor:
    """Replace tiles with special rows or columns by fp32 products, in place, and count them."""
    count = 0
    marked_N = [bool(part.any()) for part in torch.split(special_N, config.TILE)]
    for row, part_M in enumerate(torch.split(special_M, config.TILE)):
        marked = bool(part_M.any())
        rows = slice(row * config.TILE, (row + 1) * config.TILE)
        for column, special in enumerate(marked_N):
            if marked or special:
                columns = slice(column * config.TILE, (column + 1) * config.TILE)
                out_MN[rows, columns] = a_MK[rows] @ b_KN[:, columns]
                count += 1
    return torch.tensor([count], dtype=torch.int32, device=out_MN.device)
