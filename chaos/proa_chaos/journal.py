"""The journal: Chaos Toolkit's keys, with Litmus's result under `chaosresult`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import proa
from proa_chaos.experiment import ALL, PHASES, Experiment, Probe
from proa_chaos.hypothesis import Finding
from proa_chaos.measures import sources, statuses
from proa_chaos.result import Done, Phase, Result, Steady, Verdict

_STATUS = {Verdict.PASS: "completed", Verdict.FAIL: "failed", Verdict.STOPPED: "aborted"}


def journal(result: Result) -> dict[str, Any]:
    """JSON values. Times of the journal are ISO 8601 in UTC, durations seconds."""
    deviated = result.phase is Phase.COMPLETED and result.verdict is Verdict.FAIL
    return {
        "chaoslib-version": f"proa-{proa.__version__}",
        "platform": platform.platform(),
        "node": platform.node(),
        "experiment": _experiment(result.experiment),
        "start": _time(result, 0.0),
        "status": "deviated" if deviated else _STATUS[result.verdict],
        "deviated": deviated,
        "steady_states": {
            "before": _steady(result, result.before),
            "after": _steady(result, result.after),
            "during": [],
        },
        "run": [_run(result, done) for done in result.done],
        "rollbacks": [_rollback(result, done) for done in result.done],
        "end": _time(result, result.duration_s),
        "duration": round(result.duration_s, 3),
        "chaosresult": _chaosresult(result),
        "proa": _ours(result),
    }


def _experiment(experiment: Experiment) -> dict[str, Any]:
    """In the form of a Chaos Toolkit experiment."""
    return {
        "version": "1.0.0",
        "title": experiment.title,
        "description": experiment.description,
        "tags": list(experiment.tags),
        "configuration": _plain(asdict(experiment.workload)),
        "steady-state-hypothesis": {
            "title": experiment.title,
            "probes": [_probe(probe) for probe in experiment.hypothesis],
        },
        "method": [
            {"type": "action", "name": fault.name, "provider": _plain(asdict(fault))}
            for fault in experiment.faults
        ],
        "rollbacks": [{"type": "action", "name": f"end {f.name}"} for f in experiment.faults],
    }


def _probe(probe: Probe) -> dict[str, Any]:
    return {"type": "probe", "name": probe.name, "tolerance": _plain(asdict(probe))}


def _steady(result: Result, steady: Steady | None) -> dict[str, Any] | None:
    if steady is None:
        return None
    return {
        "steady_state_met": steady.met,
        "waiting_for": list(steady.waiting_for),
        "probes": [
            {
                "activity": _probe(finding.probe),
                "start": _time(result, steady.at_s),
                "status": "succeeded" if finding.value is not None else "failed",
                "end": _time(result, steady.at_s),
                "duration": 0.0,
                "output": finding.value,
                "tolerance_met": finding.met,
            }
            for finding in steady.findings
        ],
    }


def _run(result: Result, done: Done) -> dict[str, Any]:
    end_s = result.duration_s if done.end_s is None else done.end_s
    return {
        "activity": {
            "type": "action",
            "name": done.hit.text,
            "provider": _plain(asdict(done.hit.fault)),
        },
        "start": _time(result, done.start_s),
        "status": "failed" if done.error else "succeeded",
        "end": _time(result, end_s),
        "duration": round(end_s - done.start_s, 3),
        "output": done.error or None,
        "target": done.hit.target.name,
    }


def _rollback(result: Result, done: Done) -> dict[str, Any]:
    at_s = result.duration_s if done.end_s is None else done.end_s
    return {
        "activity": {"type": "action", "name": f"end {done.hit.text}"},
        "start": _time(result, at_s),
        "status": "failed" if done.end_error else "succeeded",
        "end": _time(result, at_s),
        "duration": 0.0,
        "output": done.end_error or None,
    }


def _chaosresult(result: Result) -> dict[str, Any]:
    """Litmus's ChaosResult: its `status`."""
    verdict = result.verdict
    return {
        "experimentStatus": {
            "phase": result.phase.value,
            "verdict": verdict.value,
            "probeSuccessPercentage": f"{result.success_percentage:.0f}",
            "failStep": result.fail_step or "N/A",
        },
        "probeStatus": [
            {
                "name": finding.probe.name,
                "type": "proaProbe",
                "mode": "Edge" if finding.probe.phase in ("before", "after") else "OnChaos",
                "status": {
                    "verdict": "Passed" if finding.met else "Failed",
                    "description": finding.text,
                },
            }
            for finding in result.findings
        ],
        "history": {
            "passedRuns": int(verdict is Verdict.PASS),
            "failedRuns": int(verdict is Verdict.FAIL),
            "stoppedRuns": int(verdict is Verdict.STOPPED),
            "targets": _targets(result.done),
        },
    }


def _targets(done: Sequence[Done]) -> list[dict[str, str]]:
    found = {}
    for one in done:
        status = "notReverted" if one.end_error or one.end_s is None else "reverted"
        found[one.hit.target.name] = {
            "name": one.hit.target.name, "kind": "pod", "chaosStatus": status,
        }  # fmt: skip
    return list(found.values())


def _ours(result: Result) -> dict[str, Any]:
    return {
        "name": result.experiment.name,
        "subject": result.subject,
        "backend": result.backend,
        "seed": result.seed,
        "expected": result.experiment.expected,
        "asExpected": result.as_expected,
        "recoveryS": result.seen.recovery_s,
        "notes": result.notes,
        "phases": {
            phase: {"startS": round(start_s, 3), "endS": round(end_s, 3)}
            for phase, (start_s, end_s) in result.phases.items()
        },
        "measures": {
            phase: {
                **{name: result.seen.measure(name, phase) for name in result.seen.measures},
                "sources": sources(result.seen.of(phase)),
                "statuses": statuses(result.seen.of(phase)),
            }
            for phase in (*PHASES, ALL)
            if result.seen.of(phase)
        },
        "findings": [_finding(finding) for finding in result.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    probe = finding.probe
    return {"name": probe.name, "value": finding.value, "met": finding.met, "found": finding.text}


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values without what is not given."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else _value(value)
        for key, value in tree.items()
        if value is not None
    }


def _value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) if isinstance(v, Mapping) else _value(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else str(value)


def _time(result: Result, at_s: float) -> str:
    return datetime.fromtimestamp(result.start_unix + at_s, UTC).isoformat(timespec="milliseconds")
