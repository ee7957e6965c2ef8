"""Spec file -> CodedModel. The one loader: CLI, frontend, packer and chart all use it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from proa.spec.section import read_file
from proa.spec.tables import CODED_MODEL
from proa.spec.types import CodedModel


def load(path: str | Path, files: Path | None = None) -> CodedModel:
    """Read and check a CodedModel file. Errors: SpecError with file, line, key and limit.

    Relative paths in it begin at `files`; left out, at the folder of the file itself.
    """
    file = Path(path)
    return replace(CODED_MODEL(read_file(file, files)), path=file)
