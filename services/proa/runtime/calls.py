"""Calls of a service: counted by status, bounded in number, timed by step."""

from __future__ import annotations

from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proa import rpc
from proa.errors import Overloaded

SECONDS = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5),
    *(0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Calls:
    """`with calls:` around a call. Errors: Overloaded, beyond `calls_max` at once.

    Exports proa_<service>_calls_total{status} and proa_<service>_calls_inflight.
    """

    def __init__(self, registry: CollectorRegistry, service: str, calls_max: int) -> None:
        self._calls_max = calls_max
        self._now = 0
        self._total = Counter(
            f"proa_{service}_calls", "Calls by gRPC status", ["status"], registry=registry
        )
        self._ok = self._total.labels("OK")
        inflight = Gauge(
            f"proa_{service}_calls_inflight", "Calls being worked on", registry=registry
        )
        inflight.set_function(lambda: self._now)

    def __enter__(self) -> None:
        if self._now >= self._calls_max:
            self._total.labels("RESOURCE_EXHAUSTED").inc()
            raise Overloaded(f"{self._calls_max} calls are being worked on, which is the limit")
        self._now += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._now -= 1
        if exc is None:
            self._ok.inc()
        else:
            self._total.labels(rpc.status_of(exc).name).inc()


def step_seconds(registry: CollectorRegistry, service: str, step: str, what: str) -> Histogram:
    """The histogram proa_<service>_<step>_seconds."""
    return Histogram(f"proa_{service}_{step}_seconds", what, buckets=SECONDS, registry=registry)
