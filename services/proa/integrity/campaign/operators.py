"""The checked operators that a campaign breaks, and how: one small table, `OPERATORS`.

Everything goes through the public operators and through the injection hook, which sees what each
product gives before it is checked and may change it; attempt 0 is the product itself. Importing
this module replaces the operators' CPU kernels in this process by ones with a hook.
Letters: M rows, N outputs, K inner, as in verdicts; of a convolution M is (b, p, q).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as fn

from proa.integrity.campaign.distributions import Operands, Sizes, operands
from proa_kernels import Verdict, checksum
from proa_kernels.conv import checksum as conv_checksum
from proa_kernels.injection import injecting

Constants = tuple[torch.Tensor, ...]
Result = tuple[torch.Tensor, torch.Tensor]  # output and verdict tensor
Change = Callable[[torch.Tensor], torch.Tensor]  # clean rows [M, N] -> faulty ones, anew
Call = Callable[[], Result]
PLACES = 8  # of a synthetic convolution's output, in each direction
TAPS = 3
HEAD = 64  # width of a synthetic query and key
_CONV: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [1, 1, 1, 1],
    "dilation": [1, 1],
    "groups": 1,
}


@dataclass(frozen=True)
class Layout:
    """How an operator has its operands. `make`: of a distribution. `matrices`: x `[M, K]` and
    weight `[N, K]` of the same product. `few`: x with less rows, and how many: for faults tried
    one by one. `columns`: the dimension of the accumulators that has the outputs."""

    make: Callable[[str, Sizes, torch.dtype, int], Operands]
    matrices: Callable[[torch.Tensor, torch.Tensor], Operands]
    few: Callable[[torch.Tensor, int], tuple[torch.Tensor, int]]
    columns: int


@dataclass(frozen=True)
class Operator:
    """`take`: what is kept of the weight offline, and `stored` the sites of those tensors.
    `call(x, weight, constants, correct)` gives output and verdict. `product`: which of the products
    of a call gives the output, and `steps` the sites of those before it."""

    op: str
    scheme: str
    layout: Layout
    stored: tuple[str, ...]
    take: Callable[[torch.Tensor], Constants]
    call: Callable[[torch.Tensor, torch.Tensor, Constants, bool], Result]
    product: int = 0
    steps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.op}.{self.scheme}"


def _matrices(kind: str, sizes: Sizes, dtype: torch.dtype, seed: int) -> Operands:
    return operands(kind, sizes, dtype, seed=seed)


def _images(kind: str, sizes: Sizes, dtype: torch.dtype, seed: int) -> Operands:
    """Images of 8 x 8 places and kernels of 3 x 3; at most K inner, an even number of channels."""
    rows, outputs, inner = sizes
    images, channels = max(1, rows // PLACES**2), max(2, inner // TAPS**2 // 2 * 2)
    x, _ = operands(kind, (images * PLACES**2, 1, channels), dtype, seed=seed)
    _, weight = operands(kind, (1, outputs, channels * TAPS**2), dtype, seed=seed + 1)
    x = x.view(images, PLACES, PLACES, channels).permute(0, 3, 1, 2).contiguous()
    return x, weight.view(outputs, channels, TAPS, TAPS)


def _patches(x: torch.Tensor, weight: torch.Tensor) -> Operands:
    patches = fn.unfold(x.float(), TAPS, padding=1).to(x.dtype)  # [B, K, P Q]
    return patches.transpose(1, 2).flatten(0, 1), weight.flatten(1)


def _heads(kind: str, sizes: Sizes, dtype: torch.dtype, seed: int) -> Operands:
    """Queries `[M, HEAD]`; keys and values of K places side by side, `[K, HEAD + N]`."""
    rows, outputs, inner = sizes
    query, key = operands(kind, (rows, inner, HEAD), dtype, seed=seed)
    _, value = operands(kind, (1, outputs, inner), dtype, seed=seed + 1)
    return query, torch.cat([key, value.T], 1)


def _shares(query: torch.Tensor, both: torch.Tensor) -> Operands:
    """The last product of attention: softmax times values."""
    scores = query.float() @ both[:, :HEAD].float().T / HEAD**0.5
    return scores.softmax(1), both[:, HEAD:].T


def _four_rows(x: torch.Tensor, at: int) -> tuple[torch.Tensor, int]:
    return x[[(at + step) % len(x) for step in range(4)]], 4


def _one_image(x: torch.Tensor, at: int) -> tuple[torch.Tensor, int]:
    return x[at % len(x)][None], PLACES**2


LINEAR = Layout(_matrices, lambda x, weight: (x, weight), _four_rows, -1)
ATTENTION = Layout(_heads, _shares, _four_rows, -1)
CONV = Layout(_images, _patches, _one_image, 1)


def _take_linear(weight: torch.Tensor) -> Constants:
    taken = checksum.take(weight)
    return taken.columns, taken.scales


def _take_conv(weight: torch.Tensor) -> Constants:
    taken = conv_checksum.take(weight, 1)
    return taken.columns, taken.scales


def _take_nothing(_weight: torch.Tensor) -> Constants:
    return ()


def _linear(name: str) -> Callable[[torch.Tensor, torch.Tensor, Constants, bool], Result]:
    def call(x: torch.Tensor, weight: torch.Tensor, constants: Constants, correct: bool) -> Result:
        found: Result = getattr(torch.ops.proa, name)(
            x, weight, None, *constants, inner_first=False, alpha=1.0, beta=1.0, correct=correct
        )
        return found

    return call


def _conv(name: str) -> Callable[[torch.Tensor, torch.Tensor, Constants, bool], Result]:
    def call(x: torch.Tensor, weight: torch.Tensor, constants: Constants, correct: bool) -> Result:
        found: Result = getattr(torch.ops.proa, name)(
            x, weight, None, *constants, correct=correct, **_CONV
        )
        return found

    return call


def _bmm(name: str) -> Callable[[torch.Tensor, torch.Tensor, Constants, bool], Result]:
    def call(x: torch.Tensor, weight: torch.Tensor, _: Constants, correct: bool) -> Result:
        """Two sheets of x, the same right operand for both."""
        out, verdict = getattr(torch.ops.proa, name)(
            x.view(2, -1, x.shape[1]), weight.expand(2, *weight.shape), None,
            transposed=True, alpha=1.0, beta=1.0, correct=correct,
        )  # fmt: skip
        return out.flatten(0, 1), verdict

    return call


def _attention(name: str) -> Callable[[torch.Tensor, torch.Tensor, Constants, bool], Result]:
    def call(query: torch.Tensor, both: torch.Tensor, _: Constants, correct: bool) -> Result:
        """One head."""
        out, verdict = getattr(torch.ops.proa, name)(
            query[None], both[None, :, :HEAD], both[None, :, HEAD:], None,
            causal=False, scale=None, correct=correct,
        )  # fmt: skip
        return out[0], verdict

    return call


_KEPT = ("checksum", "norms")
OPERATORS: dict[str, Operator] = {
    one.name: one
    for one in (
        Operator("linear", "row", LINEAR, _KEPT, _take_linear, _linear("checked_linear")),
        Operator("linear", "dup", LINEAR, (), _take_nothing, _linear("dup_linear")),
        Operator("conv2d", "row", CONV, _KEPT, _take_conv, _conv("checked_conv2d")),
        Operator("conv2d", "dup", CONV, (), _take_nothing, _conv("dup_conv2d")),
        Operator("bmm", "row", LINEAR, (), _take_nothing, _bmm("checked_bmm")),
        Operator(
            "attention", "row", ATTENTION, (), _take_nothing, _attention("checked_attention"),
            product=2, steps=("scores", "softmax"),
        ),
        Operator("attention", "dup", ATTENTION, (), _take_nothing, _attention("dup_attention")),
    )
}  # fmt: skip
MAIN = "linear.row"  # whose cells are the most


@dataclass(frozen=True)
class Broken:
    """A checked call with a fault in one of its products: output and verdict tensor, and the
    rows that the product gave without the fault, with it, and after the check had its way: `clean`
    bit for bit where it was repaired, as long as no addend followed in place."""

    out: torch.Tensor
    raw: torch.Tensor
    clean: torch.Tensor
    faulty: torch.Tensor
    after: torch.Tensor

    @property
    def verdict(self) -> Verdict:
        return Verdict.read(self.raw)


class NoHook(RuntimeError):
    """The call handed no such product to the injection hook."""


def undisturbed(call: Call, *, columns: int = -1, product: int = 0) -> Broken:
    """A call without a fault, and what its product gave."""
    return broken(call, lambda clean: clean, columns=columns, product=product)


def broken(
    call: Call, change: Change, *, columns: int = -1, product: int = 0, repeated: bool = False
) -> Broken:
    """Run `call` with what its `product`-th product gives changed.

    `columns`: the dimension of it that has the outputs. `repeated`: every recomputation goes wrong
    in the same way, as broken hardware does. Raises NoHook.
    """
    held: list[torch.Tensor] = []
    seen = -1

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        nonlocal seen
        seen += attempt == 0
        if seen != product or (attempt and not repeated):
            return
        rows = acc.movedim(columns, -1)
        clean = rows.reshape(-1, rows.shape[-1]).clone()
        rows.copy_(change(clean).view(rows.shape))
        if not attempt:
            held.extend((clean, rows.reshape(clean.shape).clone(), rows))

    with injecting(tamper):
        out, verdict = call()
    if not held:
        raise NoHook(f"{seen + 1} products, none of which is number {product}")
    clean, faulty, after = held
    return Broken(out, verdict, clean, faulty, after.reshape(clean.shape))
