"""The CodedModel as frozen dataclasses: what a spec file says, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NUMERIC_DTYPES = (
    "FP32", "FP16", "BF16", "FP64", "INT8", "INT16", "INT32", "INT64",
    "UINT8", "UINT16", "UINT32", "UINT64",
)  # fmt: skip
DTYPES = (*NUMERIC_DTYPES, "BOOL", "BYTES")
POLICIES = ("none", "retry", "replicate", "hedge", "parity", "auto")
CODERS = ("sum", "mean", "replica")
PROTECTION_MODES = ("none", "detect", "correct")
PROTECTION_SCHEMES = ("auto", "row", "tile", "dup")
ON_FAULT = ("failover", "answer")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the model. `shape` excludes the batch axis; -1 is a variable dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def codable(self) -> bool:
        """Only fixed-shape numbers can be added up."""
        return self.dtype in NUMERIC_DTYPES and all(n > 0 for n in self.shape)


@dataclass(frozen=True)
class ProgramRef:
    """A file, mostly a `torch.export` archive, and the sha256 (hex) it must have; None: any."""

    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """The deployed model: exactly one of `program`, `repository`, `endpoint`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    program: ProgramRef | None = None
    repository: Path | None = None
    endpoint: str | None = None
    max_batch: int = 8


@dataclass(frozen=True)
class HedgeSpec:
    """`delay_ms` None: adaptive. `budget_percent`: hedges per 100 queries at most."""

    delay_ms: float | None = None
    budget_percent: float = 10.0


@dataclass(frozen=True)
class RedundancySpec:
    """How the model's answers are protected against slow and dead workers (DESIGN 5)."""

    mode: str = "enforce"
    policy: str = "auto"
    k: int = 2
    r: int = 1
    coder: str = "sum"
    parity: Mapping[int, tuple[ProgramRef, ...]] = field(default_factory=dict)
    pool: str = "shared"
    placement: str = "auto"
    patience: str = "tail"
    group_ms_max: float = 5.0
    idle_reserve: int = 1
    inflight_max: int = 1
    hedge: HedgeSpec = field(default_factory=HedgeSpec)
    quality_sample: float = 0.05
    agreement_min: float = 0.9


@dataclass(frozen=True)
class ProtectionSpec:
    """Checks against silent data corruption in the worker (docs/abft.md).

    `strict`: refuse a program with matrix products that cannot be checked. `scheme`: how, or auto:
    as `plan` says, a file of `proa abft profile`, and `row` without one. `max_overhead_percent`:
    layers go unchecked until the plan's times are below. `on_fault`: what becomes of an answer that
    is known to be wrong. A worker with `quarantine_after` faults within the window is left alone,
    but at most `quarantine_percent_max` of a model's workers at a time.
    """

    mode: str = "none"
    strict: bool = False
    quarantine_after: int = 2
    quarantine_window_minutes: float = 60.0
    quarantine_percent_max: float = 20.0
    scheme: str = "auto"
    plan: ProgramRef | None = None
    max_overhead_percent: float | None = None
    on_fault: str = "failover"

    @property
    def checked(self) -> bool:
        """Whether the deployed program is packed with checks."""
        return self.mode != "none"


@dataclass(frozen=True)
class SloSpec:
    """What the user promised: `latency_ms` at `percentile`; requests without a deadline get
    `default_deadline_ms`."""

    latency_ms: float = 50.0
    percentile: float = 99.9
    default_deadline_ms: float = 1000.0


@dataclass(frozen=True)
class CodedModel:
    """One model with its redundancy, as the spec file `path` describes it."""

    name: str
    model: ModelSpec
    redundancy: RedundancySpec = field(default_factory=RedundancySpec)
    protection: ProtectionSpec = field(default_factory=ProtectionSpec)
    slo: SloSpec = field(default_factory=SloSpec)
    path: Path = Path()

    @property
    def codable(self) -> bool:
        """Whether this model's queries and predictions can be coded at all."""
        return all(t.codable for t in (*self.model.inputs, *self.model.outputs))

    @property
    def has_parity(self) -> bool:
        """Whether a parity query has something to run on."""
        if not self.codable:
            return False
        rows = len(self.redundancy.parity.get(self.redundancy.k, ()))
        return self.redundancy.coder == "mean" or rows >= self.redundancy.r

    def programs(self) -> dict[str, ProgramRef]:
        """The programs a worker hosts: `deployed` and, for the spec's k, `parity.0` and on."""
        if self.model.program is None:
            return {}
        found = {"deployed": self.model.program}
        if self.has_parity and self.redundancy.coder == "sum":
            rows = self.redundancy.parity[self.redundancy.k][: self.redundancy.r]
            found |= {f"parity.{row}": ref for row, ref in enumerate(rows)}
        return found
