"""Settings of the frontend, from PROA_FRONTEND_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import REQUIRED, setting


@dataclass(frozen=True)
class FrontendSettings:
    """See `why` of each."""

    specs: str = setting(
        REQUIRED,
        env="PROA_FRONTEND_SPECS",
        why="CodedModel files, separated by commas; or a folder of *.yaml, which is watched",
    )
    discovery: str = setting(
        "static",
        env="PROA_FRONTEND_DISCOVERY",
        choices=("static", "kubernetes", "dns"),
        why="who is where: as the settings say, from the Kubernetes API, or from DNS",
    )
    workers: str | None = setting(
        None,
        env="PROA_FRONTEND_WORKERS",
        why="static: model=host:port[@domain][#deployed|#parity],...;model=...",
    )
    encoders: str | None = setting(
        None,
        env="PROA_FRONTEND_ENCODERS",
        why="static: encoder addresses, separated by commas; unset: encoding is inline",
    )
    decoders: str | None = setting(
        None,
        env="PROA_FRONTEND_DECODERS",
        why="static: decoder addresses, separated by commas; unset: decoding is inline",
    )
    namespace: str | None = setting(
        None,
        env="PROA_FRONTEND_NAMESPACE",
        why="kubernetes: where the Services are; unset: the namespace of this pod",
    )
    instance: str | None = setting(
        None,
        env="PROA_FRONTEND_INSTANCE",
        why="kubernetes: label app.kubernetes.io/instance of the Services, the Helm release",
    )
    dns_prefix: str | None = setting(
        None,
        env="PROA_FRONTEND_DNS_PREFIX",
        why="dns: names are PREFIX-worker-MODEL, PREFIX-encoder, PREFIX-frontend-peers and on",
    )
    dns_suffix: str | None = setting(
        None,
        env="PROA_FRONTEND_DNS_SUFFIX",
        why="dns: what follows each name, as .default.svc.cluster.local",
    )
    pod: str | None = setting(
        None,
        env="PROA_FRONTEND_POD",
        why="own name as discovery gives it (dns: the IP); frontends take turns by it",
    )
    domain: str = setting(
        "auto",
        env="PROA_FRONTEND_DOMAIN",
        choices=("auto", "node", "pod"),
        why="what fails together; auto: pods while they are on too few nodes for a coding group",
    )
    ready_when: str = setting(
        "all",
        env="PROA_FRONTEND_READY_WHEN",
        choices=("all", "any"),
        why="ready while all models have a worker, or any; one added later counts from its first",
    )
    host: str = setting(
        "0.0.0.0",  # noqa: S104  # clients are elsewhere
        env="PROA_FRONTEND_HOST",
        why="address the gRPC port listens on",
    )
    port: int = setting(
        8001, env="PROA_FRONTEND_PORT", minimum=0, maximum=65535, why="gRPC port; 0: any"
    )
    admin_port: int = setting(
        9090,
        env="PROA_FRONTEND_ADMIN_PORT",
        minimum=0,
        maximum=65535,
        why="HTTP port of the console, /livez, /readyz and /metrics; 0: any",
    )
    message_bytes_max: int = setting(
        64 << 20,
        env="PROA_FRONTEND_MESSAGE_BYTES_MAX",
        unit="bytes",
        minimum=1 << 10,
        maximum=(1 << 31) - 1,
        why="largest message from a client or a worker",
    )
    inline_bytes_max: int = setting(
        1 << 20,
        env="PROA_FRONTEND_INLINE_BYTES_MAX",
        unit="bytes",
        minimum=0,
        maximum=1 << 30,
        why="with placement auto: larger groups go to encoder and decoder, smaller stay inline",
    )
    queue_max: int = setting(
        1024,
        env="PROA_FRONTEND_QUEUE_MAX",
        minimum=1,
        maximum=1_000_000,
        why="queries of one model that may wait; more are answered RESOURCE_EXHAUSTED",
    )
    reservoir_bytes_max: int = setting(
        64 << 20,
        env="PROA_FRONTEND_RESERVOIR_BYTES_MAX",
        unit="bytes",
        minimum=0,
        maximum=1 << 34,
        why="answered queries kept per model to fill partial groups",
    )
    calls_max: int = setting(
        4096,
        env="PROA_FRONTEND_CALLS_MAX",
        minimum=1,
        maximum=1_000_000,
        why="calls at once, streams included",
    )
    stream_inflight_max: int = setting(
        256,
        env="PROA_FRONTEND_STREAM_INFLIGHT_MAX",
        minimum=1,
        maximum=100_000,
        why="unanswered requests of one stream; the next one waits for a place",
    )
    watchers_max: int = setting(
        32,
        env="PROA_FRONTEND_WATCHERS_MAX",
        minimum=1,
        maximum=10_000,
        why="Status streams at once",
    )
    canary_s: float = setting(
        5.0,
        env="PROA_FRONTEND_CANARY_S",
        unit="s",
        minimum=0.05,
        maximum=600.0,
        why="a worker that answered nothing for so long gets a canary",
    )
    canary_timeout_s: float = setting(
        3.0,
        env="PROA_FRONTEND_CANARY_TIMEOUT_S",
        unit="s",
        minimum=0.05,
        maximum=600.0,
        why="a canary without an answer for so long has failed",
    )
    grace_s: float = setting(
        5.0,
        env="PROA_FRONTEND_GRACE_S",
        unit="s",
        minimum=0.0,
        maximum=600.0,
        why="time that requests under way have to end when the process is told to stop",
    )
    tls_dir: Path | None = setting(
        None,
        env="PROA_FRONTEND_TLS_DIR",
        why="tls.crt, tls.key, ca.crt: mutual TLS towards the services; not set: none",
    )
    client_tls_dir: Path | None = setting(
        None,
        env="PROA_FRONTEND_CLIENT_TLS_DIR",
        why="tls.crt, tls.key: TLS towards clients, who show certificates if there is a ca.crt",
    )
    tokens: Path | None = setting(
        None,
        env="PROA_FRONTEND_TOKENS",
        why="YAML file of bearer tokens, which is watched; not set: no token is wanted",
    )
    faults: bool = setting(
        False,
        env="PROA_FRONTEND_FAULTS",
        why="serve FaultInjector, for chaos experiments only; needs tokens, or loopback",
    )
    request_log: str = setting(
        "notable",
        env="PROA_FRONTEND_REQUEST_LOG",
        choices=("none", "notable", "all"),
        why="a log line for requests; notable: failed, reconstructed, won by a hedge, or slow",
    )
    drain_s: float = setting(
        0.0,
        env="PROA_FRONTEND_DRAIN_S",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
        why="told to stop: unready at once, but served on for so long, until all have heard of it",
    )
