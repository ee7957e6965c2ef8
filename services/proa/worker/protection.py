"""Checked matrix products: `proa pack` puts them into the deployed program, the backend reads
what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proa.errors import ProgramRefused, SpecError, Unavailable
from proa.spec import ProtectionSpec
from proa.spec.reports import ABFT, CORRUPTION
from proa.worker import programs
from proa_kernels import Plan, PlanRefused, Verdict, WeightsRefused, protect

Outputs = tuple[torch.Tensor, ...]


def protect_file(
    file: Path, sha256: str | None, spec: ProtectionSpec
) -> tuple[str, dict[str, Any]]:
    """Put a program whose matrix products are checked in the place of the one in `file`.

    Returns the sha256 that the file had, and what is checked: `proa_kernels.Coverage.to_dict`.
    Raises SpecError (the plan does not fit the program; `strict` names what cannot be checked) or
    ProgramRefused (no such program, or weights that no checksum can be taken of).
    """
    assert spec.checked
    program, digest = programs.load_exported(file, sha256)
    with programs.named(file), programs.torch_errors():
        try:
            protected, coverage = protect(program, Plan(mode=spec.mode, strict=spec.strict))
        except PlanRefused as exc:
            raise SpecError(str(exc)) from exc
        except WeightsRefused as exc:
            raise ProgramRefused(str(exc)) from exc
        torch.export.save(protected, file)
    return digest, coverage.to_dict()


def split_verdict(outputs: Outputs, checked: bool) -> tuple[Outputs, torch.Tensor | None]:
    """A program's own outputs, and the verdict that a checked one gives last."""
    return (outputs[:-1], outputs[-1]) if checked else (outputs, None)


def refuse_corrupt(verdict: torch.Tensor, layers: Sequence[str]) -> None:
    """Raise Unavailable where a fault stands that no recomputation repaired. `layers`: checked."""
    if not Verdict.read(verdict).failed:
        return
    name, found = next(
        (name, found)
        for name, found in zip(layers, Verdict.read_layers(verdict), strict=True)
        if found.failed
    )
    raise Unavailable(
        f"{CORRUPTION} in layer {name} (row {found.row}, column {found.column}), not repaired"
    )


def verdict_report(verdict: torch.Tensor, batch: int) -> NDArray[np.float64]:
    """`[batch, 8]`, the output `proa.abft`: the summary, the same for each of the batch."""
    summary = verdict[:1].cpu().numpy()
    assert summary.shape == (1, *ABFT.shape)
    return np.tile(summary, (batch, 1))
