"""Settings of the frontend, from PROA_FRONTEND_*."""

from __future__ import annotations

from dataclasses import dataclass

from proa.runtime.settings import REQUIRED, setting


@dataclass(frozen=True)
class FrontendSettings:
    """See `why` of each."""

    specs: str = setting(
        REQUIRED,
        env="PROA_FRONTEND_SPECS",
        why="CodedModel files, separated by commas",
    )
    workers: str = setting(
        REQUIRED,
        env="PROA_FRONTEND_WORKERS",
        why="model=host:port[@domain][#deployed|#parity],...;model=...",
    )
    encoders: str | None = setting(
        None,
        env="PROA_FRONTEND_ENCODERS",
        why="encoder addresses, separated by commas; unset: encoding is inline",
    )
    decoders: str | None = setting(
        None,
        env="PROA_FRONTEND_DECODERS",
        why="decoder addresses, separated by commas; unset: decoding is inline",
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
        why="HTTP port of /livez, /readyz and /metrics; 0: any",
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
