"""One served model: spec, engine, shell and pool put together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from proa.codes import make_code
from proa.dispatch import Engine, EngineConfig
from proa.errors import UnknownModel
from proa.frontend.addresses import WorkerAddress
from proa.frontend.coders import Coders, Peers
from proa.frontend.metrics import FrontendMetrics, Recent
from proa.frontend.pool import Pool
from proa.frontend.settings import FrontendSettings
from proa.frontend.shell import Shell
from proa.frontend.workers import WorkerCalls
from proa.parity import ParityRunner
from proa.rpc import Channels
from proa.spec import CodedModel


@dataclass(frozen=True)
class Model:
    """A model that this frontend serves."""

    spec: CodedModel
    shell: Shell
    pool: Pool
    recent: Recent

    @property
    def ready(self) -> bool:
        """Whether any worker can answer for it."""
        return self.pool.ready.is_set()


@dataclass(frozen=True)
class Peerings:
    """What all models share: connections and coder processes."""

    channels: Channels
    encoders: Sequence[str]
    decoders: Sequence[str]


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


def build_model(
    spec: CodedModel,
    workers: Sequence[WorkerAddress],
    settings: FrontendSettings,
    peerings: Peerings,
    metrics: FrontendMetrics,
) -> Model:
    """Everything for one model; nothing runs yet."""
    red = spec.redundancy
    code = make_code(red.coder, red.k, red.r)
    runner = ParityRunner(peerings.channels)
    calls = WorkerCalls(spec, peerings.channels, runner)
    recent = Recent(time.monotonic)
    coders = Coders(
        spec,
        code,
        runner,
        peerings.channels,
        encoders=Peers(peerings.encoders, time.monotonic),
        decoders=Peers(peerings.decoders, time.monotonic),
        inline_bytes_max=settings.inline_bytes_max,
        on_fallback=lambda service: metrics.fallbacks.labels(spec.name, service).inc(),
    )
    pool = Pool(workers, calls, canary_s=settings.canary_s, timeout_s=settings.canary_timeout_s)

    def on_reply(source: str, latency_s: float, would_be_s: float | None) -> None:
        recent.add(latency_s)
        metrics.seconds.labels(spec.name, source).observe(latency_s)
        if red.mode == "observe":
            best = latency_s if would_be_s is None else min(latency_s, would_be_s)
            metrics.would_be_seconds.labels(spec.name).observe(best)

    shell = Shell(
        spec,
        Engine(engine_config(spec, settings)),
        calls,
        coders,
        code,
        on_probe=pool.probe,
        on_reply=on_reply,
    )
    return Model(spec, shell, pool, recent)


class Models:
    """The served models by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.by_name = {model.spec.name: model for model in models}

    def get(self, name: str) -> Model:
        """The model `name`. Errors: UnknownModel, naming those there are."""
        found = self.by_name.get(name)
        if found is None:
            raise UnknownModel(f"model {name[:64]!r} is unknown; served: {', '.join(self.by_name)}")
        return found

    @property
    def ready(self) -> bool:
        """Whether every model has a worker."""
        return all(model.ready for model in self.by_name.values())
