"""What one model's workers found out about their own arithmetic, counted."""

from __future__ import annotations

import math
from collections import Counter as CountsOf
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proa.frontend.verdicts import Verdict

FAILED, REPAIRED, NEAR = "failed", "repaired", "near"
KINDS = (REPAIRED, FAILED, NEAR)
# Residuals over their limits; 1 and above is suspicious, and nearly all clean ones are below 0.5.
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 10.0, 1e3, 1e6)
# Stands for Inf, NaN and what is above it: a sum of them would be neither use nor ornament.
RATIO_MAX = 1e9


class IntegrityMetrics:
    """The metrics of all models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.checks = Counter(
            "proa_abft_checks_total",
            "Checks of matrix products that workers reported with their answers",
            ["model", "worker"],
            registry=registry,
        )
        self.faults = Counter(
            "proa_abft_faults_total",
            "Answers with a fault: repaired, failed (refused or marked), near (maybe rounding)",
            ["model", "worker", "kind"],
            registry=registry,
        )
        self.ratio = Histogram(
            "proa_abft_residual_ratio",
            "Worst residual of an answer's checks over its limit; Inf and NaN count as 1e9",
            ["model"],
            buckets=RATIOS,
            registry=registry,
        )
        self.quarantined = Gauge(
            "proa_abft_quarantined",
            "Workers that this frontend gives no work because they computed wrongly",
            ["model"],
            registry=registry,
        )
        self.capped = Counter(
            "proa_abft_quarantine_capped_total",
            "Faults of workers that ought to be in quarantine, but too many are",
            ["model"],
            registry=registry,
        )


@dataclass(slots=True)
class Tally:
    """Of one worker, since this frontend knows it."""

    checks: int = 0
    kinds: CountsOf[str] = field(default_factory=CountsOf)

    @property
    def faults(self) -> int:
        """Those that count against the worker."""
        return self.kinds[REPAIRED] + self.kinds[FAILED]


class Integrity:
    """Counts for one model. `on_fault`: told of each fault that counts against a worker; `before`:
    of the version that this one takes over from, whose counts go on."""

    def __init__(
        self,
        model: str,
        metrics: IntegrityMetrics,
        *,
        on_fault: Callable[[str], None] = lambda _worker: None,
        before: Integrity | None = None,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._on_fault = on_fault
        self.tallies: dict[str, Tally] = before.tallies if before is not None else {}
        # A series that begins with its first event shows no increase: these begin at zero.
        metrics.capped.labels(model)
        self._ratio = metrics.ratio.labels(model)

    def expect(self, worker: str) -> None:
        """`worker` reports verdicts."""
        if worker not in self.tallies:
            self.tallies[worker] = Tally()
            self._metrics.checks.labels(self._model, worker)
            for kind in KINDS:
                self._metrics.faults.labels(self._model, worker, kind)

    def take(self, worker: str, verdict: Verdict) -> None:
        """The verdict that came with an answer of `worker`."""
        self.expect(worker)
        self.tallies[worker].checks += verdict.checks
        self._metrics.checks.labels(self._model, worker).inc(verdict.checks)
        ratio = verdict.ratio if math.isfinite(verdict.ratio) else RATIO_MAX
        self._ratio.observe(min(ratio, RATIO_MAX))
        if verdict.status == "failed":
            self.fault(worker, FAILED)
        elif verdict.status == "repaired":
            self.fault(worker, NEAR if verdict.near else REPAIRED)

    def fault(self, worker: str, kind: str) -> None:
        """`worker` computed wrongly; `kind` is one of KINDS."""
        self.expect(worker)
        self.tallies[worker].kinds[kind] += 1
        self._metrics.faults.labels(self._model, worker, kind).inc()
        if kind != NEAR:
            self._on_fault(worker)

    def forget(self, worker: str) -> None:
        """The worker is gone for good: so are its series."""
        if self.tallies.pop(worker, None) is not None:
            self._metrics.checks.remove(self._model, worker)
            for kind in KINDS:
                self._metrics.faults.remove(self._model, worker, kind)

    def show(self, quarantined: int) -> None:
        """So many workers are in quarantine."""
        self._metrics.quarantined.labels(self._model).set(quarantined)

    def capped(self) -> None:
        """A fault of a worker that ought to be in quarantine."""
        self._metrics.capped.labels(self._model).inc()
