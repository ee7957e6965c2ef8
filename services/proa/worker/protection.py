"""Checked matrix products: `proa pack` puts them into the deployed program, the backend reads
what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from proa.errors import ProgramRefused, SpecError, Unavailable
from proa.integrity.profile.layers import model_key
from proa.integrity.profile.machine import device_of
from proa.integrity.profile.plan import Device, device_differs, read_plan
from proa.spec import ProtectionSpec
from proa.spec.reports import ABFT, CORRUPTION
from proa.worker import programs
from proa_kernels import Plan, PlanRefused, Verdict, WeightsRefused, protect

Outputs = tuple[torch.Tensor, ...]


def protect_file(
    file: Path, sha256: str | None, spec: ProtectionSpec, device: str = "cpu"
) -> tuple[str, dict[str, Any]]:
    """Put a program whose matrix products are checked in the place of the one in `file`.

    `device`: "cpu" or "gpu", where it will run. Returns the sha256 that the file had, and what is
    checked: `proa_kernels.Coverage.to_dict`, with the plan's hash and device under `plan`.
    Raises SpecError (the plan does not fit the program or the device; `strict` names what cannot
    be checked) or ProgramRefused (no such program, or weights that no checksum can be taken of).
    """
    assert spec.checked
    program, digest = programs.load_exported(file, sha256)
    with programs.named(file), programs.torch_errors():
        try:
            chosen = _choose(program, digest, spec, device)
            protected, coverage = protect(program, chosen.plan)
        except PlanRefused as exc:
            raise SpecError(str(exc)) from exc
        except WeightsRefused as exc:
            raise ProgramRefused(str(exc)) from exc
        torch.export.save(protected, file)
    return digest, chosen.described(coverage.to_dict())


@dataclass(frozen=True)
class _Chosen:
    """`left_out`: layers that the limit on the overhead leaves unchecked, for `reason`."""

    plan: Plan
    left_out: frozenset[str] = frozenset()
    reason: str = ""
    record: Mapping[str, Any] | None = None

    def described(self, coverage: dict[str, Any]) -> dict[str, Any]:
        """The coverage report, with what the plan did to it."""
        layers = [
            {**layer, "reason": self.reason} if layer["layer"] in self.left_out else layer
            for layer in coverage["layers"]
        ]
        plan = {} if self.record is None else {"plan": self.record}
        return {**coverage, "layers": layers, **plan}


def _choose(program: ExportedProgram, digest: str, spec: ProtectionSpec, device: str) -> _Chosen:
    if spec.plan is None:
        default = "row" if spec.scheme == "auto" else spec.scheme
        return _Chosen(Plan(mode=spec.mode, default=default, strict=spec.strict))
    plan = read_plan(spec.plan.path, spec.plan.sha256)
    plan.check_model(model_key(program, digest))
    kind = "cuda" if device == "gpu" else device
    # A GPU may be elsewhere: then the worker that loads the package looks at its own.
    there = device_of(kind) if kind == "cpu" or torch.cuda.is_available() else None
    plan.check_device(there or replace(plan.device, kind=kind))
    dropped = plan.left_out(spec.max_overhead_percent)
    reason = f"left out to stay below maxOverheadPercent {spec.max_overhead_percent}"
    if spec.strict and dropped:
        raise SpecError(f"strict: {dropped[0]}: {reason}")
    layers = {**plan.layers, **dict.fromkeys(dropped, "none")}
    record = {"sha256": plan.sha256, "device": asdict(plan.device)}
    chosen = Plan(mode=spec.mode, default="none", layers=layers, strict=spec.strict)
    return _Chosen(chosen, frozenset(dropped), reason, record)


def check_device(coverage: Mapping[str, Any] | None, device: str) -> None:
    """Raise ProgramRefused where a package was planned for another device than `device`."""
    record = (coverage or {}).get("plan")
    if record is None:
        return
    try:
        device_differs(Device(**record["device"]), device_of(device))
    except SpecError as exc:
        raise ProgramRefused(str(exc)) from exc


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
