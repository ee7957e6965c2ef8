"""The CodedModel spec file: one loader, frozen dataclasses."""

from __future__ import annotations

from proa.spec.load import load
from proa.spec.types import (
    CodedModel,
    HedgeSpec,
    ModelSpec,
    ProgramRef,
    ProtectionSpec,
    RedundancySpec,
    SloSpec,
    TensorSpec,
)

__all__ = [
    "CodedModel",
    "HedgeSpec",
    "ModelSpec",
    "ProgramRef",
    "ProtectionSpec",
    "RedundancySpec",
    "SloSpec",
    "TensorSpec",
    "load",
]
