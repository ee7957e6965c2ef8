"""Writes CodedModel files for what was trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.spec import TensorSpec
from proa.train.checkpoint import write_text


@dataclass(frozen=True)
class ProgramFile:
    """A program beside the spec file, and its sha256 (hex)."""

    name: str
    sha256: str


def write_spec(
    path: Path,
    name: str,
    deployed: ProgramFile,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    parity: Mapping[int, Sequence[ProgramFile]],
    *,
    r: int = 1,
    max_batch: int = 8,
) -> None:
    """Write the spec of model `name` to `path`; its k is the first of `parity`, or 2."""
    lines = [
        "apiVersion: proa.dev/v1alpha1",
        "kind: CodedModel",
        f"metadata: {{name: {name}}}",
        "spec:",
        "  model:",
        f"    program: {deployed.name}",
        f"    sha256: {deployed.sha256}",
        f"    maxBatch: {max_batch}",
        *_tensors("inputs", inputs),
        *_tensors("outputs", outputs),
        "  redundancy:",
        "    policy: auto",
        f"    k: {next(iter(parity), 2)}",
        f"    r: {r}",
        "    coder: sum",
        *parity_lines(parity),
        "  protection: {mode: none}",
        "  slo: {latencyMs: 50, defaultDeadlineMs: 1000}",
    ]
    write_text(path, "\n".join(lines) + "\n")


def parity_lines(parity: Mapping[int, Sequence[ProgramFile]]) -> list[str]:
    """The lines of `redundancy.parity`, indented as they stand in the file."""
    lines = ["    parity:"] if parity else []
    for k, files in parity.items():
        lines.append(f'      "{k}":')
        lines += [f"        - {{program: {f.name}, sha256: {f.sha256}}}" for f in files]
    return lines


def _tensors(key: str, specs: Sequence[TensorSpec]) -> list[str]:
    items = [
        f"      - {{name: {s.name}, dtype: {s.dtype}, shape: [{', '.join(map(str, s.shape))}]}}"
        for s in specs
    ]
    return [f"    {key}:", *items]
