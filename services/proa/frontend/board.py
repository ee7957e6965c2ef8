"""What the console says of a model beside its rows: as it is now."""

from __future__ import annotations

from typing import Any

from proa.frontend.history import MINUTE_S, WORKERS_MAX, History, in_force
from proa.frontend.models import Model
from proa.frontend.pool import Member


def board(model: Model, history: History) -> dict[str, Any]:
    """Everything, for JSON. Times in ms, shares 0 to 1; counts of `total` since the start, those of
    `minute` of the last 60 s. It has nothing of any request but when it came and how it went."""
    engine = model.shell.engine
    config, plan, stats, slo = engine.config, engine.in_force(), engine.state.stats, model.spec.slo
    return {
        "name": model.spec.name,
        "ready": model.ready,
        "package": model.pool.package[:12],
        "slo": {
            "latency_ms": slo.latency_ms,
            "percentile": slo.percentile,
            "deadline_ms": slo.default_deadline_ms,
        },
        "policy": {
            "configured": config.policy,
            "in_force": in_force(model),
            "why": plan.why,
            "mode": config.mode,
            "k": config.k,
            "r": config.r,
            "pool": config.pool,
            "patience": config.patience,
            "utilisation": round(engine.utilisation.value, 3),
            "late_share": round(engine.state.stragglers.share(), 4),
        },
        "queue": engine.queue_depth,
        "queue_max": config.queue_max,
        "minute": {
            "seconds": MINUTE_S,
            "counts": history.minute.counts(),
            "late": history.late,
            "quantiles_ms": history.minute.quantiles_ms(),
        },
        "total": {
            "answers": dict(stats.answers),
            "failed": dict(stats.failed),
            "sent": stats.sent,
            "redundant": dict(stats.redundant),
            "groups": dict(stats.groups),
            "fillers": stats.fillers,
            "redundancy_lost": stats.redundancy_lost,
        },
        "accuracy": _accuracy(model),
        "integrity": _integrity(model),
        "workers": _workers(model, history),
        "workers_left_out": max(0, len(model.pool.members) - WORKERS_MAX),
    }


def _accuracy(model: Model) -> dict[str, Any]:
    engine = model.shell.engine
    quality, config = engine.state.quality, engine.config
    return {
        "agreement": quality.agreement,
        "samples": quality.samples,
        "minimum": config.agreement_min,
        "sampled": config.quality_sample,
        "off": quality.low,
    }


def _integrity(model: Model) -> dict[str, Any]:
    """Checks of matrix products by all workers, and what they found."""
    tallies = list(model.pool.integrity.tallies.values())
    return {
        "mode": model.spec.protection.mode,
        "checks": sum(tally.checks for tally in tallies),
        "faults": sum(tally.faults for tally in tallies),
        "quarantined": len(model.pool.quarantine.held),
    }


def _workers(model: Model, history: History) -> list[dict[str, Any]]:
    """Those in the pool, and those that the rows still know of."""
    ids = history.workers
    members = model.pool.members
    return [_worker(model, name, number, members.get(name)) for name, number in sorted(ids.items())]


def _worker(model: Model, name: str, number: int, member: Member | None) -> dict[str, Any]:
    found: dict[str, Any] = {"id": number, "name": name, "state": "gone", "reason": ""}
    if member is None:
        return found
    found |= {
        "state": member.state,
        "reason": member.reason,
        "domain": member.address.domain,
        "roles": sorted(member.roles),
    }
    worker = model.shell.engine.state.workers.get(name)
    if worker is not None:
        found |= {
            "inflight": len(worker.running),
            "answered": worker.answered,
            "errors": worker.errors,
        }
    tally = model.pool.integrity.tallies.get(name)
    if tally is not None:
        found |= {"checks": tally.checks, "faults": tally.faults}
    return found
