"""Settings of `proa-service chaos`, from PROA_CHAOS_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.runtime.settings import REQUIRED, setting
from proa.store.access import Access, read_access

_READER = ("PROA_CHAOS_READER_USER", "PROA_CHAOS_READER_PASSWORD_FILE")


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
    store: str | None = setting(
        None,
        env="PROA_CHAOS_STORE",
        why="host:port of the coordinators' Service, for experiments on the store",
    )
    reader_user: str = setting(
        "",
        env=_READER[0],
        why="user of the shards' servers, where they have users",
    )
    reader_password_file: Path | None = setting(
        None, env=_READER[1], why=f"file with the password of {_READER[0]}"
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
        why="tls.crt, tls.key, ca.crt of the services: mutual TLS towards all but frontends",
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

    @property
    def access(self) -> Access:
        """To a store. Errors: SettingsError, EnvironmentLacks."""
        return read_access(self.tls_dir, self.reader_user, self.reader_password_file, _READER)
