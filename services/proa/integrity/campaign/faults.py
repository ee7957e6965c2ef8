"""What goes wrong: faults of the facts (abft F), applied to rows of floats of any width.

Letters: F rows, one fault in each; N elements of a row. Element faults change one element; row
faults change several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MULTI = (2, 8)  # bits of a multi-bit fault
STRIDES = (8, 16, 32)  # lanes of a quarter, a half and a whole warp
RUN = (8, 16)  # consecutive zeros
MANY = -1  # the column, or the bits, of a fault of several elements


@dataclass(frozen=True)
class Corrupted:
    """`rows` `[F, N]` after the faults; `columns` `[F]`: of the one wrong element, or MANY; `bits`
    `[F]`, int64: which of its bits changed, or MANY."""

    rows: torch.Tensor
    columns: torch.Tensor
    bits: torch.Tensor


@dataclass(frozen=True)
class Fault:
    """`about`: for people. `element`: changes one element of a row, else several."""

    about: str
    element: bool


FAULTS: dict[str, Fault] = {
    "bit": Fault("one bit flipped, every bit alike", element=True),
    "adjacent": Fault("two adjacent bits flipped", element=True),
    "multi": Fault(f"{MULTI[0]} to {MULTI[1]} bits flipped", element=True),
    "byte": Fault("random bits of one byte flipped", element=True),
    "word": Fault("a random word", element=True),
    "zero": Fault("zero", element=True),
    "inf": Fault("Inf, of either sign", element=True),
    "nan": Fault("NaN", element=True),
    "stride": Fault("one bit stuck in every 8th, 16th or 32nd column", element=False),
    "zeros": Fault(f"{RUN[0]} to {RUN[1]} columns in a row are zero", element=False),
    "swap": Fault("two columns exchanged", element=False),
    "pair": Fault("+d in one column, -d in another; d of the data's sigma", element=False),
    "stale": Fault("the row holds that of another place", element=False),
}
ELEMENTS = tuple(name for name, fault in FAULTS.items() if fault.element)
_FLOATING = ("inf", "nan", "pair")


def possible(kind: str, dtype: torch.dtype) -> bool:
    """Whether numbers of that type can be so."""
    return dtype.is_floating_point or kind not in _FLOATING


def words(values: torch.Tensor) -> torch.Tensor:
    """The same bits as signed integers: NaN equals itself, -0 differs from 0."""
    return values.view(_INTEGERS[values.element_size()])


def width_of(dtype: torch.dtype) -> int:
    """Bits of one element."""
    return 8 * torch.empty(0, dtype=dtype).element_size()


def differs(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Elementwise, bit for bit."""
    return words(one.contiguous()) != words(other.contiguous())


def corrupt(
    kind: str,
    rows_FN: torch.Tensor,
    dice: torch.Generator,
    *,
    span: tuple[int, int] | None = None,
) -> Corrupted:
    """One fault of `kind` in each row, in columns of `span` (default: all). Rows too short for it
    stay as they are. A stale row holds its neighbour."""
    if FAULTS[kind].element:
        return _element(kind, rows_FN, dice, span or (0, rows_FN.shape[1]))
    changed = _ROWS[kind](rows_FN, dice)
    many = torch.full((len(rows_FN),), MANY)
    return Corrupted(changed, many, many)


def _element(
    kind: str, rows_FN: torch.Tensor, dice: torch.Generator, span: tuple[int, int]
) -> Corrupted:
    rows = torch.arange(len(rows_FN))
    columns_F = torch.randint(*span, (len(rows_FN),), generator=dice)
    before_F = rows_FN[rows, columns_F]
    if kind in _MASKS:
        masks_F = _MASKS[kind](len(rows_FN), width_of(rows_FN.dtype), dice)
        after_F = _flipped(before_F, masks_F)
    else:
        after_F = _VALUES[kind](before_F, dice)
    changed = rows_FN.clone()
    changed[rows, columns_F] = after_F
    return Corrupted(changed, columns_F, words(before_F).long() ^ words(after_F).long())


def _flipped(values_F: torch.Tensor, masks_F: torch.Tensor) -> torch.Tensor:
    whole = words(values_F)
    return (whole ^ _signed(masks_F, values_F).to(whole.dtype)).view(values_F.dtype)


def _signed(masks_F: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Unsigned masks as the signed integers of that width."""
    width = width_of(like.dtype)
    return masks_F if width == 64 else masks_F - ((masks_F >> (width - 1)) << width)


def _bit(count: int, width: int, dice: torch.Generator) -> torch.Tensor:
    """Every bit equally often, up to one."""
    first = int(torch.randint(width, (), generator=dice))
    return torch.ones(count, dtype=torch.int64) << ((torch.arange(count) + first) % width)


def _adjacent(count: int, width: int, dice: torch.Generator) -> torch.Tensor:
    low = torch.randint(width - 1, (count,), generator=dice)
    return torch.full((count,), 3, dtype=torch.int64) << low


def _multi(count: int, width: int, dice: torch.Generator) -> torch.Tensor:
    """Distinct bits: the first n of a random order."""
    order = torch.rand(count, width, generator=dice).argsort(1)
    many = torch.randint(MULTI[0], MULTI[1] + 1, (count, 1), generator=dice)
    chosen = order < many
    return (chosen.long() << torch.arange(width)).sum(1)


def _byte(count: int, width: int, dice: torch.Generator) -> torch.Tensor:
    value = torch.randint(1, 256, (count,), generator=dice)
    return value << (8 * torch.randint(width // 8, (count,), generator=dice))


def _word(count: int, width: int, dice: torch.Generator) -> torch.Tensor:
    """XOR with a random word is a random word; never none at all."""
    high = min(1 << width, torch.iinfo(torch.int64).max)
    return torch.randint(1, high, (count,), generator=dice)


def _zero(values_F: torch.Tensor, _dice: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(values_F)


def _inf(values_F: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    sign = torch.randint(2, values_F.shape, generator=dice).mul(2).sub(1)
    return (sign * torch.inf).to(values_F.dtype)


def _nan(values_F: torch.Tensor, _dice: torch.Generator) -> torch.Tensor:
    return torch.full_like(values_F, torch.nan)


def _stride(rows: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """A lane's bit stuck at 0 or 1: every element that the lane holds."""
    count, wide = rows.shape
    step = torch.tensor(STRIDES)[torch.randint(len(STRIDES), (count, 1), generator=dice)]
    phase = (torch.rand(count, 1, generator=dice) * step).long()
    mine = torch.arange(wide) % step == phase
    masks = _bit(count, width_of(rows.dtype), dice)
    masks = masks[torch.randperm(count, generator=dice)]
    mask = _signed(masks, rows).to(words(rows).dtype).unsqueeze(1)
    high = torch.randint(2, (count, 1), generator=dice).bool()
    stuck = torch.where(high, words(rows) | mask, words(rows) & ~mask)
    return torch.where(mine, stuck, words(rows)).view(rows.dtype)


def _zeros(rows: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    count, wide = rows.shape
    many = torch.randint(RUN[0], RUN[1] + 1, (count, 1), generator=dice).clamp(max=wide)
    first = (torch.rand(count, 1, generator=dice) * (wide - many + 1)).long()
    at = torch.arange(wide)
    return torch.where((at >= first) & (at < first + many), 0.0, rows).to(rows.dtype)


def _two(count: int, wide: int, dice: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    left = torch.randint(wide, (count,), generator=dice)
    return left, (left + 1 + torch.randint(max(1, wide - 1), (count,), generator=dice)) % wide


def _swap(rows: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    at, (left, right) = torch.arange(len(rows)), _two(rows.shape[0], rows.shape[1], dice)
    changed = rows.clone()
    changed[at, left], changed[at, right] = rows[at, right], rows[at, left]
    return changed


def _pair(rows: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    at, (left, right) = torch.arange(len(rows)), _two(rows.shape[0], rows.shape[1], dice)
    by = torch.randn(len(rows), generator=dice).to(rows.dtype)
    by = by * (rows.std() if rows.numel() > 1 else 0.0)
    changed = rows.clone()
    changed[at, left] += by
    changed[at, right] -= by
    return changed


def _stale(rows: torch.Tensor, _dice: torch.Generator) -> torch.Tensor:
    return rows.roll(1, 0)


Mask = Callable[[int, int, torch.Generator], torch.Tensor]
Value = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
_MASKS: dict[str, Mask] = {
    "bit": _bit, "adjacent": _adjacent, "multi": _multi, "byte": _byte, "word": _word,
}  # fmt: skip
_VALUES: dict[str, Value] = {"zero": _zero, "inf": _inf, "nan": _nan}
_ROWS: dict[str, Value] = {
    "stride": _stride, "zeros": _zeros, "swap": _swap, "pair": _pair, "stale": _stale,
}  # fmt: skip
