"""Whether a model answers otherwise than it did."""

from __future__ import annotations

import math
from typing import Any

import torch

from proa.integrity.campaign.layers import Answers

RTOL, ATOL = 1e-3, 1e-3  # of a single number as an answer


def changes(clean: Answers, answers: Answers) -> dict[str, Any] | None:
    """The first input of a batch whose answer is another, or None: the arg-max of an output's
    last axis, or a single number that is off by more than RTOL and ATOL."""
    worst = max(map(_difference, clean.outputs, answers.outputs), default=0.0)
    for which, (before, after) in enumerate(zip(clean.outputs, answers.outputs, strict=True)):
        if not before.numel() or not before.dim():
            continue
        flat = [one.reshape(len(one), -1) for one in (_answer(before), _answer(after))]
        wrong = (~_same(*flat)).any(1).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0])
            place = int((~_same(flat[0][at], flat[1][at])).nonzero()[0])
            return {
                "input": at, "output": which, "answer": flat[0][at, place].item(),
                "became": flat[1][at, place].item(), "difference": worst,
            }  # fmt: skip
    return None


def _answer(output: torch.Tensor) -> torch.Tensor:
    """Classes, or the numbers themselves. NaN is the largest for arg-max, as it is for torch."""
    scores = output.dtype.is_floating_point and output.dim() > 1 and output.shape[-1] > 1
    return output.argmax(-1) if scores else output


def _same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if not one.dtype.is_floating_point:
        return one == other
    return torch.isclose(other.double(), one.double(), rtol=RTOL, atol=ATOL, equal_nan=True)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference; Inf where there is no such number."""
    gap = float((other.double() - one.double()).abs().max()) if one.numel() else 0.0
    return gap if math.isfinite(gap) else math.inf
