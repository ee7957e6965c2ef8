"""One served model: spec, engine, shell and pool put together."""

from __future__ import annotations

import time
from dataclasses import dataclass

from proa.codes import make_code
from proa.dispatch import Engine, EngineConfig
from proa.frontend.coders import Coders, Peers
from proa.frontend.integrity import Integrity
from proa.frontend.metrics import FrontendMetrics, Recent
from proa.frontend.models import Model
from proa.frontend.nursery import Nursery
from proa.frontend.pool import Pool
from proa.frontend.quarantine import Limits, Quarantine
from proa.frontend.settings import FrontendSettings
from proa.frontend.shell import Shell
from proa.frontend.stories import Story
from proa.frontend.tracing import METHOD, Storyteller
from proa.frontend.workers import WorkerCalls
from proa.parity import ParityRunner
from proa.rpc import Channels
from proa.runtime.faults import FaultTable
from proa.spec import CodedModel


@dataclass(frozen=True)
class Shared:
    """What all models have in common: connections, coder processes, metrics, tasks."""

    settings: FrontendSettings
    channels: Channels
    encoders: Peers
    decoders: Peers
    metrics: FrontendMetrics
    nursery: Nursery
    faults: FaultTable | None = None
    teller: Storyteller | None = None


def engine_config(spec: CodedModel, settings: FrontendSettings) -> EngineConfig:
    """The spec in the engine's terms: seconds and shares."""
    red = spec.redundancy
    hedge_ms = red.hedge.delay_ms
    return EngineConfig(
        policy=red.policy,
        k=red.k,
        r=red.r,
        pool=red.pool,
        mode=red.mode,
        patience=red.patience,
        parity_possible=spec.has_parity,
        group_s_max=red.group_ms_max / 1000.0,
        idle_reserve=red.idle_reserve,
        inflight_max=red.inflight_max,
        hedge_delay_s=None if hedge_ms is None else hedge_ms / 1000.0,
        hedge_budget=red.hedge.budget_percent / 100.0,
        quality_sample=red.quality_sample,
        agreement_min=red.agreement_min,
        latency_prior_s=spec.slo.latency_ms / 1000.0,
        queue_max=settings.queue_max,
        reservoir_bytes_max=settings.reservoir_bytes_max,
    )


def _make_pool(
    spec: CodedModel,
    shared: Shared,
    calls: WorkerCalls,
    integrity: Integrity,
    before: Model | None,
) -> Pool:
    """The spec in the pool's terms: seconds."""
    protection = spec.protection
    limits = Limits(
        after=protection.quarantine_after,
        window_s=60.0 * protection.quarantine_window_minutes,
        percent_max=protection.quarantine_percent_max,
    )
    return Pool(
        calls,
        shared.nursery,
        integrity,
        Quarantine(limits, before.pool.quarantine if before else None),
        canary_s=shared.settings.canary_s,
        timeout_s=shared.settings.canary_timeout_s,
    )


def build_model(spec: CodedModel, shared: Shared, before: Model | None) -> Model:
    """Everything for one model; it has no workers yet. `before`: what it takes over from; its
    counts go on, so that no metric falls when a spec changes."""
    red = spec.redundancy
    settings, metrics = shared.settings, shared.metrics
    code = make_code(red.coder, red.k, red.r)
    runner = ParityRunner(shared.channels)
    integrity = Integrity(
        spec.name,
        metrics.integrity,
        on_fault=lambda worker: pool.fault(worker, shell),
        before=before.pool.integrity if before else None,
    )
    calls = WorkerCalls(spec, shared.channels, runner, shared.faults, integrity)
    recent = before.recent if before else Recent(time.monotonic)
    coders = Coders(
        spec,
        code,
        runner,
        shared.channels,
        encoders=shared.encoders,
        decoders=shared.decoders,
        inline_bytes_max=settings.inline_bytes_max,
        on_fallback=lambda service: metrics.fallbacks.labels(spec.name, service).inc(),
    )
    pool = _make_pool(spec, shared, calls, integrity, before)
    engine = Engine(engine_config(spec, settings))
    if before is not None:
        engine.state.stats = before.shell.engine.state.stats

    teller = shared.teller
    slow_s = teller.slow_s(spec) if teller is not None else 0.0

    def on_reply(
        source: str, latency_s: float, would_be_s: float | None, story: Story | None
    ) -> None:
        recent.add(latency_s, source)
        exemplar = None
        if teller is not None and story is not None:
            exemplar = teller.judge(story, slow=latency_s > slow_s)
        metrics.seconds.labels(spec.name, source).observe(latency_s, exemplar)
        if red.mode == "observe":
            best = latency_s if would_be_s is None else min(latency_s, would_be_s)
            metrics.would_be_seconds.labels(spec.name).observe(best)

    hedges = metrics.hedges.labels(METHOD, spec.name)
    shell = Shell(
        spec,
        engine,
        calls,
        coders,
        code,
        on_probe=pool.probe,
        on_reply=on_reply,
        on_end=hedges.observe,
    )
    return Model(spec, shell, pool, recent)
