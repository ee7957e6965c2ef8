"""The demo's raw material and its numbers: one record per request in, one row per run out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest
from proa.load import quantile

# The order of legends, counts and colours; other sources come after these, by name.
SOURCES = ("worker", "retry", "replica", "hedge", "backup", "reconstructed")
# What the headline compares.
HERO, BASELINE = "auto", "none"


@dataclass(frozen=True)
class RequestRecord:
    """One request. Times in seconds; intended_s counts from the policy's run start.

    latency_s: from the intended send time. source: the answer's `proa.source` (empty if failed).
    correct: its arg-max equals the label (None: no label, or failed). wrong: it differs from the
    offline model though it is not marked reconstructed.
    """

    policy: str
    phase: str
    index: int
    intended_s: float
    latency_s: float
    ok: bool
    source: str
    correct: bool | None
    wrong: bool
    error: str = ""


@dataclass(frozen=True)
class FaultWindow:
    """From start_s to end_s (seconds from the run start) `worker` was slow or killed."""

    policy: str
    kind: str
    worker: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, in seconds from its start."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class ReportConfig:
    """What was run.

    policies: name -> label for people, in the order of the report. deadline_s: what a failed
    request counts with. hero, baseline: the two policies that the headline compares. facts: JSON
    values about the run that hold on any machine (seed, rate, versions; no paths, no host names).
    """

    policies: Mapping[str, str]
    phases: Sequence[Phase]
    deadline_s: float = 0.5
    hero: str = HERO
    baseline: str = BASELINE
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One policy in one phase: a row of the table and an entry of `runs` in report.json.

    Latencies in ms over all requests that were meant to leave in the phase, failed ones counted
    with the deadline (NaN if there were none); p999_n: how many samples p999_ms stands on.
    answers: source -> answered requests. accuracy: correct share of the answers with a label
    (None if there is none). extra_work: redundant computations in percent of the requests.
    """

    policy: str
    phase: str
    sent: int
    failed: int
    wrong: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    p999_n: int
    gap_ms: float
    answers: Mapping[str, int]
    accuracy: float | None
    extra_work: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times rounded to the microsecond, NaN as null."""
        values = {name: _plain(value) for name, value in vars(self).items()}
        return values | {"answers": dict(self.answers)}


@dataclass(frozen=True)
class Report:
    """The runs in order of phase and policy, with the records and fault windows behind them."""

    runs: Sequence[Run]
    records: Sequence[RequestRecord]
    windows: Sequence[FaultWindow]
    config: ReportConfig

    def run(self, policy: str, phase: str) -> Run:
        """Errors: InvalidRequest when there is no such run."""
        for run in self.runs:
            if (run.policy, run.phase) == (policy, phase):
                return run
        raise InvalidRequest(f"the report has no run of policy {policy!r} in phase {phase!r}")

    def of(self, policy: str, phase: str | None = None) -> list[RequestRecord]:
        """The policy's records, of one phase or of all."""
        return [r for r in self.records if r.policy == policy and phase in (None, r.phase)]

    def latencies_ms(self, policy: str, phase: str) -> NDArray[np.float64]:
        """Ascending; failed requests counted with the deadline."""
        return np.sort(_latencies_ms(self.of(policy, phase), self.config.deadline_s))

    def sources(self) -> list[str]:
        """The answer sources that occur, in the order of SOURCES."""
        found = {record.source for record in self.records if record.ok}
        return [s for s in SOURCES if s in found] + sorted(found.difference(SOURCES))


def build_report(
    records: Iterable[RequestRecord],
    windows: Iterable[FaultWindow],
    extra_work: Mapping[tuple[str, str], float],
    config: ReportConfig,
) -> Report:
    """One Run for each phase and policy of `config`.

    extra_work: (policy, phase) -> percent, one for every pair. Errors: InvalidRequest names a
    record of an unknown policy or phase, and a pair without extra work.
    """
    phases = [phase.name for phase in config.phases]
    found: dict[tuple[str, str], list[RequestRecord]] = {
        (policy, phase): [] for phase in phases for policy in config.policies
    }
    kept = list(records)
    for record in kept:
        if (record.policy, record.phase) not in found:
            raise InvalidRequest(
                f"record {record.index} is of policy {record.policy!r} and phase"
                f" {record.phase!r}; the report knows {list(config.policies)} and {phases}"
            )
        found[record.policy, record.phase].append(record)
    if missing := found.keys() - extra_work.keys():
        raise InvalidRequest(f"no extra work is given for {sorted(missing)}")
    runs = [_run(*key, found[key], extra_work[key], config.deadline_s) for key in found]
    return Report(runs, kept, list(windows), config)


def _run(
    policy: str,
    phase: str,
    records: Sequence[RequestRecord],
    extra_work: float,
    deadline_s: float,
) -> Run:
    latencies_ms = _latencies_ms(records, deadline_s)
    p50_ms, p99_ms, p999_ms = (quantile(latencies_ms, share) for share in (0.50, 0.99, 0.999))
    answered = [record for record in records if record.ok]
    labelled = [record.correct for record in answered if record.correct is not None]
    return Run(
        policy=policy,
        phase=phase,
        sent=len(records),
        failed=len(records) - len(answered),
        wrong=sum(record.wrong and record.source != "reconstructed" for record in answered),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        p999_n=len(records),
        gap_ms=p99_ms - p50_ms,
        answers=_counts(answered),
        accuracy=sum(labelled) / len(labelled) if labelled else None,
        extra_work=extra_work,
    )


def _latencies_ms(records: Sequence[RequestRecord], deadline_s: float) -> NDArray[np.float64]:
    return 1e3 * np.array([r.latency_s if r.ok else deadline_s for r in records], np.float64)


def _counts(answered: Sequence[RequestRecord]) -> dict[str, int]:
    counts = Counter(record.source for record in answered)
    order = [*SOURCES, *sorted(counts.keys() - set(SOURCES))]
    return {source: counts[source] for source in order if counts[source]}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6 if abs(value) <= 1 else 3)
    return value
