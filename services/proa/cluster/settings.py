"""Settings of the two processes of a cluster that do one thing and end: fetch and smoke."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import REQUIRED, setting

S3_ENDPOINT = "https://s3.amazonaws.com"


@dataclass(frozen=True)
class FetchSettings:
    """From PROA_FETCH_*; credentials for S3 come from AWS_* variables, as everywhere."""

    url: str = setting(
        REQUIRED, env="PROA_FETCH_URL", why="http://, https:// or s3://BUCKET/KEY of one archive"
    )
    sha256: str = setting(
        REQUIRED, env="PROA_FETCH_SHA256", why="checksum of the archive, 64 hexadecimal digits"
    )
    out: Path = setting(
        REQUIRED, env="PROA_FETCH_OUT", why="the folder that the files get; appears complete"
    )
    bytes_max: int = setting(
        16 << 30,
        env="PROA_FETCH_BYTES_MAX",
        unit="bytes",
        minimum=1,
        maximum=1 << 40,
        why="size of the archive",
    )
    unpacked_bytes_max: int = setting(
        32 << 30,
        env="PROA_FETCH_UNPACKED_BYTES_MAX",
        unit="bytes",
        minimum=1,
        maximum=1 << 40,
        why="size of all its files together",
    )
    files_max: int = setting(
        10_000,
        env="PROA_FETCH_FILES_MAX",
        minimum=1,
        maximum=1_000_000,
        why="files and folders in it",
    )
    attempts_max: int = setting(
        6,
        env="PROA_FETCH_ATTEMPTS_MAX",
        minimum=1,
        maximum=100,
        why="tries, as long as the trouble may pass: no connection, a timeout, HTTP 429 or 5xx",
    )
    backoff_s: float = setting(
        1.0,
        env="PROA_FETCH_BACKOFF_S",
        unit="s",
        minimum=0.0,
        maximum=60.0,
        why="before the second try; doubles from try to try, up to a minute",
    )
    timeout_s: float = setting(
        30.0,
        env="PROA_FETCH_TIMEOUT_S",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
        why="a server that sends nothing for so long has failed",
    )
    total_s_max: float = setting(
        3600.0,
        env="PROA_FETCH_TOTAL_S_MAX",
        unit="s",
        minimum=1.0,
        maximum=86_400.0,
        why="time for all tries together",
    )
    s3_endpoint: str = setting(
        S3_ENDPOINT,
        env="PROA_FETCH_S3_ENDPOINT",
        why="of s3 sources: http:// or https://, host and port",
    )
    s3_region: str | None = setting(
        None, env="PROA_FETCH_S3_REGION", why="of the bucket; not set: the server is asked"
    )


@dataclass(frozen=True)
class SmokeSettings:
    """From PROA_SMOKE_*."""

    address: str = setting(
        REQUIRED, env="PROA_SMOKE_ADDRESS", why="host:port of the frontends, or of one"
    )
    specs: Path = setting(
        REQUIRED, env="PROA_SMOKE_SPECS", why="folder of the CodedModel files: models to ask"
    )
    reconstruct: bool = setting(
        False,
        env="PROA_SMOKE_RECONSTRUCT",
        why="demand one reconstructed answer of every model with parity",
    )
    queries: int = setting(
        4,
        env="PROA_SMOKE_QUERIES",
        minimum=1,
        maximum=1000,
        why="usual queries to each model",
    )
    timeout_s: float = setting(
        60.0,
        env="PROA_SMOKE_TIMEOUT_S",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
        why="time for all, including for the server to become ready",
    )
    tls_ca: Path | None = setting(
        None, env="PROA_SMOKE_TLS_CA", why="certificate authority; not set: no TLS"
    )
    tls_cert: Path | None = setting(
        None, env="PROA_SMOKE_TLS_CERT", why="own certificate, where clients must show one"
    )
    tls_key: Path | None = setting(None, env="PROA_SMOKE_TLS_KEY", why="its private key")
    token_file: Path | None = setting(
        None, env="PROA_SMOKE_TOKEN_FILE", why="holds a bearer token, where clients need one"
    )
