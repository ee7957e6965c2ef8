"""Registration of `proa::checked_attention` and `proa::dup_attention` with torch."""

from __future__ import annotations

import math
from typing import Any

import torch

from proa_kernels import verdict
from proa_kernels.attention.reference import Attention, Heads
from proa_kernels.dup.reference import duplicated
from proa_kernels.errors import KernelError
from proa_kernels.rowcheck import Tamper

_LIBRARY: Any = torch.library.Library("proa", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "checked_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, *, bool causal,"
    " float? scale, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_LIBRARY.define(
    "dup_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, *, bool causal,"
    " float? scale, bool correct) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.no_grad()
def checked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale query key.T + mask) value, as torch's scaled_dot_product_attention without
    dropout, and its verdict. Computed in fp32, rounded once: not torch's bits, but its value.

    `query` `[..., H, M, E]`; `key`, `value` `[..., H or a divisor of it, N, E]`: each of theirs
    serves as many neighbours of the query's heads. `mask`: bool (true: seen) or additive,
    broadcast to `[..., H, M, N]`. Row of the verdict: in the result flattened to `[rows, E]`; its
    column is that of the result where the product with `value` is wrong, else -1.
    """
    lead, rows = query.shape[:-2], query.shape[-2]
    call = Attention(
        q=query.flatten(0, -3),
        k=_shared(key, lead),
        v=_shared(value, lead),
        mask=None if mask is None else _broadcast(mask, (*lead, rows, key.shape[-2])),
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        causal=causal,
        correct=correct,
        tamper=tamper,
    )
    out, found = call.run()
    return _layout(query, value).copy_(out.view(*query.shape[:-1], value.shape[-1])), found


@torch.no_grad()
def dup_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    correct: bool = False,
    tamper: Tamper | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own attention, twice, compared bit for bit: scheme `dup`. Arguments as above."""

    def compute(attempt: int) -> torch.Tensor:
        out = _torch(query, key, value, mask, causal, scale)
        if tamper is not None:
            tamper(out, attempt)
        return out

    return duplicated(compute, value.shape[-1], -1, correct=correct)


def _torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=scale,
        enable_gqa=bool(query.shape[-3] != key.shape[-3]),
    )  # fmt: skip


def _shared(tensor: torch.Tensor, lead: torch.Size) -> Heads:
    """Keys or values, one for each head or for some neighbours."""
    flat = tensor.flatten(0, -3)
    mine = tensor.shape[:-2]
    if mine == lead:
        return Heads(flat, None)
    places = torch.arange(len(flat), device=flat.device).view(mine)
    return Heads(flat, places.repeat_interleave(lead[-1] // mine[-1], -1).flatten())


def _broadcast(mask: torch.Tensor, shape: tuple[int, ...]) -> Heads:
    mask = mask.view(*(1,) * (len(shape) - mask.dim()), *mask.shape)
    mask = mask.expand(*mask.shape[:-1], shape[-1])
    flat = mask.flatten(0, -3)
    places = torch.arange(len(flat), device=mask.device).view(mask.shape[:-2])
    return Heads(flat, places.expand(shape[:-2]).flatten())


def _layout(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """An empty result. torch's fused kernels lay it out as the query, and views of it count on
    that; elsewhere it is contiguous."""
    if query.dim() == 4 and value.shape[-1] == query.shape[-1] and query.stride(-1) == 1:
        return torch.empty_like(query)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return checked_attention(query, key, value, mask, **options)


def _dup(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return dup_attention(query, key, value, mask, **options)


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,  # noqa: ARG001
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    if not query.dtype == key.dtype == value.dtype:
        raise KernelError(f"one dtype, not {query.dtype}, {key.dtype} and {value.dtype}")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        shapes = [tuple(one.shape) for one in (query, key, value)]
        raise KernelError(f"no attention of {shapes[0]}, {shapes[1]} and {shapes[2]}")
    return _layout(query, value), query.new_empty((verdict.WIDTH,), dtype=torch.float64)


def _fake_dup(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    correct: bool,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    out = _torch(query, key, value, mask, causal, scale)
    return out, query.new_empty((verdict.WIDTH,), dtype=torch.float64)


_LIBRARY.impl("checked_attention", _kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("dup_attention", _dup, "CompositeExplicitAutograd")
torch.library.register_fake("proa::checked_attention", _fake, lib=_LIBRARY)
torch.library.register_fake("proa::dup_attention", _fake_dup, lib=_LIBRARY)
