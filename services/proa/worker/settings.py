"""Settings of the worker process, from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import REQUIRED, setting

ANY_HOST = "0.0.0.0"  # noqa: S104 - in a pod, peers and the kubelet come from outside


@dataclass(frozen=True)
class WorkerSettings:
    """Each field names its variable, unit, reason and limits; a bad value stops the start."""

    repository: Path = setting(
        REQUIRED, env="PROA_WORKER_REPOSITORY", why="the folder that `proa pack` wrote"
    )
    scratch: Path | None = setting(
        None,
        env="PROA_WORKER_SCRATCH",
        why="backend binaries and the fault record; not set: a temporary folder",
    )
    triton: Path | None = setting(
        None,
        env="PROA_WORKER_TRITON",
        why="folder of an installed Triton, as in its own image; not set: that of the wheel",
    )
    host: str = setting(ANY_HOST, env="PROA_WORKER_HOST", why="address Triton listens on")
    port: int = setting(8001, env="PROA_WORKER_PORT", why="gRPC", minimum=1, maximum=65535)
    http_port: int = setting(
        8000, env="PROA_WORKER_HTTP_PORT", why="Triton's HTTP", minimum=1, maximum=65535
    )
    metrics_port: int = setting(
        8002, env="PROA_WORKER_METRICS_PORT", why="Triton's metrics", minimum=1, maximum=65535
    )
    admin_port: int = setting(
        9090, env="PROA_WORKER_ADMIN_PORT", why="livez, readyz, metrics", minimum=0, maximum=65535
    )
    threads: int = setting(
        1,
        env="PROA_WORKER_THREADS",
        why="torch threads; workers that share a machine must not fight for it",
        minimum=1,
        maximum=1024,
    )
    service_ms: float = setting(
        0.0,
        env="PROA_WORKER_SERVICE_MS",
        unit="ms",
        why="every computation holds the worker at least that long: stands for a GPU in demos",
        minimum=0.0,
        maximum=60_000.0,
    )
    start_s_max: float = setting(
        120.0,
        env="PROA_WORKER_START_S_MAX",
        unit="s",
        why="a worker that has not answered by then exits",
        minimum=1.0,
        maximum=3600.0,
    )
    canary_s: float = setting(
        2.0,
        env="PROA_WORKER_CANARY_S",
        unit="s",
        why="a worker that answered nothing for so long gets a canary inference",
        minimum=0.05,
        maximum=3600.0,
    )
    canary_timeout_s: float = setting(
        5.0,
        env="PROA_WORKER_CANARY_TIMEOUT_S",
        unit="s",
        why="without an answer, and without progress by anybody else's request, it failed",
        minimum=0.1,
        maximum=3600.0,
    )
    tls_dir: Path | None = setting(
        None,
        env="PROA_WORKER_TLS_DIR",
        why="tls.crt, tls.key, ca.crt: mutual TLS at Triton's gRPC port, no HTTP; not set: neither",
    )
    trace_url: str | None = setting(
        None,
        env="PROA_WORKER_TRACE_URL",
        why="base URL of the collector's OTLP over HTTP, where OTEL_EXPORTER_OTLP_ENDPOINT is gRPC",
    )
    restart_lease: str | None = setting(
        None,
        env="PROA_WORKER_RESTART_LEASE",
        why="Lease by which workers take turns to restart Triton for a renewed certificate",
    )
    restart_spread_s: float = setting(
        300.0,
        env="PROA_WORKER_RESTART_SPREAD_S",
        unit="s",
        why="without a Lease, such a restart comes after a random delay of up to so long",
        minimum=0.0,
        maximum=86_400.0,
    )
    drain_s: float = setting(
        0.0,
        env="PROA_WORKER_DRAIN_S",
        unit="s",
        why="told to stop: unready at once, but served on for so long, until all have heard of it",
        minimum=0.0,
        maximum=3600.0,
    )
    canary_failures: int = setting(
        3,
        env="PROA_WORKER_CANARY_FAILURES",
        why="as many in a row, once ready: the worker exits, to be restarted",
        minimum=1,
        maximum=1000,
    )
