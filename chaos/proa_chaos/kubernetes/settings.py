"""Settings of `proa-service chaos`, from PROA_CHAOS_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import REQUIRED, setting


@dataclass(frozen=True)
class ChaosSettings:
    """See `why` of each."""

    file: Path = setting(REQUIRED, env="PROA_CHAOS_FILE", why="the experiment")
    instance: str = setting(
        REQUIRED,
        env="PROA_CHAOS_INSTANCE",
        why="label app.kubernetes.io/instance of the pods, the Helm release",
    )
    address: str = setting(
        REQUIRED, env="PROA_CHAOS_ADDRESS", why="host:port of the frontends' Service"
    )
    namespace: str | None = setting(
        None, env="PROA_CHAOS_NAMESPACE", why="of the release; not set: the one of this pod"
    )
    specs: Path | None = setting(
        None,
        env="PROA_CHAOS_SPECS",
        why="folder of the CodedModel files: k and r for the guard; not set: k = r = 1",
    )
    out: Path | None = setting(
        None, env="PROA_CHAOS_OUT", why="folder for journal.json and report.html"
    )
    model: str | None = setting(None, env="PROA_CHAOS_MODEL", why="instead of the file's")
    rate_hz: float | None = setting(
        None,
        env="PROA_CHAOS_RATE_HZ",
        unit="Hz",
        minimum=0.1,
        maximum=10_000.0,
        why="requests a second, instead of the file's",
    )
    seed: int = setting(
        0, env="PROA_CHAOS_SEED", minimum=0, maximum=2**31 - 1, why="of every random choice"
    )
    force: bool = setting(
        False, env="PROA_CHAOS_FORCE", why="break more than the redundancy is made for"
    )
    parallel: bool = setting(
        False, env="PROA_CHAOS_PARALLEL", why="although another experiment may be running"
    )
    nodes: bool = setting(
        False,
        env="PROA_CHAOS_NODES",
        why="we may cordon nodes, so lift cordons that dead runs left",
    )
    token_file: Path | None = setting(
        None,
        env="PROA_CHAOS_TOKEN_FILE",
        why="holds a bearer token with `faults: true`, where the frontends want one",
    )
    tls_dir: Path | None = setting(
        None,
        env="PROA_CHAOS_TLS_DIR",
        why="tls.crt, tls.key, ca.crt of the services: mutual TLS towards workers and coders",
    )
    client_tls_dir: Path | None = setting(
        None,
        env="PROA_CHAOS_CLIENT_TLS_DIR",
        why="ca.crt: TLS towards frontends; tls.crt and tls.key where clients show certificates",
    )
    job: str | None = setting(
        None, env="PROA_CHAOS_JOB", why="own Job: gets Events and an annotation of the verdict"
    )
    pod: str | None = setting(None, env="PROA_CHAOS_POD", why="own pod, which holds the Lease")
