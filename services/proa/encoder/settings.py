"""Settings of the encoder, from PROA_ENCODER_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import setting


@dataclass(frozen=True)
class EncoderSettings:
    """See `why` of each."""

    host: str = setting(
        "0.0.0.0",  # noqa: S104  # frontends are other pods
        env="PROA_ENCODER_HOST",
        why="address the gRPC port listens on",
    )
    port: int = setting(
        8010, env="PROA_ENCODER_PORT", minimum=0, maximum=65535, why="gRPC port; 0: any"
    )
    admin_port: int = setting(
        9090,
        env="PROA_ENCODER_ADMIN_PORT",
        minimum=0,
        maximum=65535,
        why="HTTP port of /livez, /readyz and /metrics; 0: any",
    )
    message_bytes_max: int = setting(
        64 << 20,
        env="PROA_ENCODER_MESSAGE_BYTES_MAX",
        unit="bytes",
        minimum=1 << 10,
        maximum=(1 << 31) - 1,
        why="largest message; bounds memory together with the calls at once",
    )
    calls_max: int = setting(
        64,
        env="PROA_ENCODER_CALLS_MAX",
        minimum=1,
        maximum=10_000,
        why="calls at once; more are answered RESOURCE_EXHAUSTED with a retry delay",
    )
    deadline_s_max: float = setting(
        10.0,
        env="PROA_ENCODER_DEADLINE_S_MAX",
        unit="s",
        minimum=0.001,
        maximum=600.0,
        why="bound on a call to a worker, for callers with a later deadline or none",
    )
    workers_max: int = setting(
        256,
        env="PROA_ENCODER_WORKERS_MAX",
        minimum=1,
        maximum=10_000,
        why="connections to workers kept open; the least recently used one is closed",
    )
    grace_s: float = setting(
        5.0,
        env="PROA_ENCODER_GRACE_S",
        unit="s",
        minimum=0.0,
        maximum=600.0,
        why="time that calls under way have to end when the process is told to stop",
    )
    drain_s: float = setting(
        0.0,
        env="PROA_ENCODER_DRAIN_S",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
        why="told to stop: unready at once, but served on for so long, until all have heard of it",
    )
    tls_dir: Path | None = setting(
        None,
        env="PROA_ENCODER_TLS_DIR",
        why="tls.crt, tls.key, ca.crt: mutual TLS among the services; not set: none",
    )
    faults: bool = setting(
        False,
        env="PROA_ENCODER_FAULTS",
        why="serve FaultInjector; for chaos experiments only",
    )
