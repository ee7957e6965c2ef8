"""A small fault campaign: flips of accumulator bits, one in each row, counted per bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.matrices import Sizes, flip_each_row, operands, product


@dataclass
class BitCount:
    """`visible`: the stored output differs. `large`: by more than 1e-3 of the output's sigma."""

    injected: int = 0
    detected: int = 0
    visible: int = 0
    visible_detected: int = 0
    large: int = 0
    large_detected: int = 0
    falsely_corrected: int = 0


def flip_counts(
    kind: str, sizes: Sizes, dtype: torch.dtype, *, rounds: int, seed: int
) -> list[BitCount]:
    """Per bit of the fp32 accumulator: `rounds` products with one flip in each of the M rows.

    A detected row is replaced, so it equals the clean row; an undetected one keeps its flip.
    """
    counts = [BitCount() for _ in range(32)]
    generator = torch.Generator().manual_seed(seed)
    for round_ in range(rounds):
        x, weight = operands(kind, sizes, dtype, seed=seed + round_)
        clean, verdict = product(x, weight)
        assert verdict.alarms == 0
        for bit, count in enumerate(counts):
            columns = torch.randint(sizes[1], (sizes[0],), generator=generator)
            _count(count, x, weight, clean, columns, bit, dtype)
    return counts


def _count(
    count: BitCount,
    x: torch.Tensor,
    weight: torch.Tensor,
    clean: torch.Tensor,
    columns: torch.Tensor,
    bit: int,
    dtype: torch.dtype,
) -> None:
    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            flip_each_row(acc, columns, 1 << bit)

    fixed, _ = product(x, weight, correct=True, tamper=tamper)
    flipped = clean.clone()
    tamper(flipped, 0)
    detected = (fixed == clean).all(1)
    kept = (fixed.view(torch.int32) == flipped.view(torch.int32)).all(1)
    rows = torch.arange(len(clean))
    before, after = clean[rows, columns], flipped[rows, columns]
    visible = before.to(dtype) != after.to(dtype)
    large = ~((after - before).abs() <= 1e-3 * clean.std())
    count.injected += len(clean)
    count.detected += int(detected.sum())
    count.visible += int(visible.sum())
    count.visible_detected += int((visible & detected).sum())
    count.large += int(large.sum())
    count.large_detected += int((large & detected).sum())
    count.falsely_corrected += int((~detected & ~kept).sum())


def share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
