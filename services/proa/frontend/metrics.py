"""The frontend's metrics: histograms filled here, counters read from the engines when scraped."""

from __future__ import annotations

from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proa.dispatch import Engine
from proa.dispatch.group import GroupState
from proa.dispatch.workers import Worker
from proa.frontend.integrity import IntegrityMetrics

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
HEDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
RECENT_MAX = 20_000
RECENT_S = 60.0


class FrontendMetrics:
    """What the request path counts. Latencies are seconds from arrival to reply."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "proa_frontend_requests_total",
            "Requests by model and gRPC status",
            ["model", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "proa_frontend_request_seconds",
            "Time from arrival to reply, by source of the answer",
            ["model", "source"],
            buckets=SECONDS,
            registry=registry,
        )
        self.would_be_seconds = Histogram(
            "proa_frontend_would_be_seconds",
            "With mode observe: what the time would have been with reconstructions",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.hedges = Histogram(
            "grpc_client_call_hedges",
            "Hedges sent for a request (gRFC A96)",
            ["grpc_method", "grpc_target"],
            buckets=HEDGES,
            registry=registry,
        )
        self.integrity = IntegrityMetrics(registry)
        self._add_troubles(registry)
        self._add_gauges(registry)

    def _add_troubles(self, registry: CollectorRegistry) -> None:
        self.untold = Counter(
            "proa_frontend_untold_total",
            "Notable requests neither logged nor traced: there were more than 100 a second",
            registry=registry,
        )
        self.fallbacks = Counter(
            "proa_frontend_inline_fallbacks_total",
            "Groups decoded inline because no decoder answered",
            ["model", "service"],
            registry=registry,
        )
        self.spec_errors = Counter(
            "proa_frontend_spec_errors_total",
            "Spec files that could not be used; what was in force stays so",
            registry=registry,
        )
        self.discovery_errors = Counter(
            "proa_frontend_discovery_errors_total",
            "Errors of discovery; who was there last counts as there",
            registry=registry,
        )

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        self.models = Gauge(
            "proa_frontend_models",
            "Models: serving, starting (a new version beside the old), leaving; broken spec files",
            ["state"],
            registry=registry,
        )
        self.frontends = Gauge(
            "proa_frontends",
            "Frontends that share the workers, as this one sees",
            registry=registry,
        )
        self.index = Gauge(
            "proa_frontend_index", "Which of them this one is, from 0", registry=registry
        )

    def count_models(self, counts: Mapping[str, int]) -> None:
        """So many models in each state."""
        for state, count in counts.items():
            self.models.labels(state).set(count)


class Recent:
    """Latencies of the last minute, for status and console: at most 20,000 of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seen: deque[tuple[float, float, str]] = deque(maxlen=RECENT_MAX)

    def add(self, latency_s: float, source: str) -> None:
        """Take in one latency, of an answer from `source`."""
        self._seen.append((self._now(), latency_s, source))

    def between(self, since: float, until: float) -> Iterator[tuple[float, str]]:
        """Latency and source of what was added after `since` and not after `until` (our clock)."""
        for at, latency_s, source in reversed(self._seen):
            if at <= since:
                return
            if at <= until:
                yield latency_s, source

    def quantiles_ms(self, *wanted: float) -> tuple[float, ...]:
        """Milliseconds for each wanted quantile; zeros before the first answer."""
        since = self._now() - RECENT_S
        values = [latency for at, latency, _ in self._seen if at >= since]
        if not values:
            return (0.0,) * len(wanted)
        return tuple(float(q) * 1000.0 for q in np.quantile(values, wanted))


class EngineCollector(Collector):
    """Reads the engines of all models at scrape time."""

    def __init__(self, engines: Callable[[], Mapping[str, Engine]]) -> None:
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "proa_answers_total", "Answers by source", labels=("model", "source")
        )
        failed = CounterMetricFamily(
            "proa_failed_queries_total",
            "Queries that failed, by gRPC status",
            labels=("model", "status"),
        )
        sent = CounterMetricFamily(
            "proa_sent_queries_total",
            "Queries sent to a worker, first attempts only",
            labels=("model",),
        )
        redundant = CounterMetricFamily(
            "proa_redundant_work_total", "Redundant computations by kind", labels=("model", "kind")
        )
        groups = CounterMetricFamily(
            "proa_groups_total", "Coding groups by how they ended", labels=("model", "state")
        )
        fillers = CounterMetricFamily(
            "proa_fillers_total", "Places in groups filled with answered queries", labels=("model",)
        )
        lost = CounterMetricFamily(
            "proa_redundancy_lost_total",
            "Parity rows that failed or found no worker",
            labels=("model",),
        )
        tied = CounterMetricFamily(
            "proa_tied_queries_total",
            "Queries sent ahead to wait at a busy worker (sent), and taken back (taken_back)",
            labels=("model", "event"),
        )
        for model, engine in self._engines().items():
            stats = engine.state.stats
            for counter, found in (
                (tied, stats.tied),
                (answers, stats.answers),
                (failed, stats.failed),
                (redundant, stats.redundant),
                (groups, stats.groups),
            ):
                for label, count in list(found.items()):
                    counter.add_metric((model, label), count)
            sent.add_metric((model,), stats.sent)
            fillers.add_metric((model,), stats.fillers)
            lost.add_metric((model,), stats.redundancy_lost)
        yield from (answers, failed, sent, redundant, groups, fillers, lost, tied)

    def _gauges(self) -> Iterator[Metric]:
        queue = GaugeMetricFamily(
            "proa_queue_depth", "Queries that wait for a worker", labels=("model",)
        )
        workers = GaugeMetricFamily("proa_workers", "Workers by state", labels=("model", "state"))
        open_groups = GaugeMetricFamily(
            "proa_groups_open", "Coding groups at work by state", labels=("model", "state")
        )
        agreed = GaugeMetricFamily(
            "proa_agreement_ratio", "Online agreement of reconstructions, 0 to 1", labels=("model",)
        )
        samples = GaugeMetricFamily(
            "proa_agreement_samples", "Groups behind the agreement ratio", labels=("model",)
        )
        used = GaugeMetricFamily(
            "proa_utilisation_ratio",
            "Share of workers busy with queries, 0 to 1",
            labels=("model",),
        )
        for model, engine in self._engines().items():
            state = engine.state
            queue.add_metric((model,), engine.queue_depth)
            found = Counts(_worker_state(worker) for worker in list(state.workers))
            for label in ("up", "suspected", "draining"):
                workers.add_metric((model, label), found[label])
            states = [group.state for group in list(engine.coding.groups.values())]
            for one in (GroupState.OPEN, GroupState.CLOSED, GroupState.DECODABLE):
                open_groups.add_metric((model, one.value), states.count(one))
            if state.quality.agreement is not None:
                agreed.add_metric((model,), state.quality.agreement)
            samples.add_metric((model,), state.quality.samples)
            used.add_metric((model,), engine.utilisation.value)
        yield from (queue, workers, open_groups, agreed, samples, used)


def _worker_state(worker: Worker) -> str:
    if worker.draining:
        return "draining"
    return "up" if worker.trusted else "suspected"
