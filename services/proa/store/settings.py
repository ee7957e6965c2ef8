"""Settings of the store's processes, from PROA_STORE_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proa.cluster.settings import S3_ENDPOINT
from proa.errors import SettingsError
from proa.rpc import check_address
from proa.runtime.settings import REQUIRED, setting
from proa.store.access import (
    READER_SETTINGS,
    SERVER_SETTINGS,
    TLS_SETTING,
    Access,
    read_access,
)
from proa.store.told import server_at

_HOST = "address the gRPC port listens on"
_ADMIN = "HTTP port of /livez, /readyz and /metrics; 0: any"
_TLS = "tls.crt, tls.key, ca.crt of proa-store: for gRPC and for servers; not set: none"
_READER = "user that reads the servers of other shards; not set: the default user"
_READER_FILE = "file with the password of PROA_STORE_READER_USER"
_MESSAGE = "largest message: a snapshot of a block, a push for one shard"


@dataclass(frozen=True)
class AgentSettings:
    """See `why` of each. Where everybody else is, an agent hears from the coordinator."""

    shard: int = setting(
        REQUIRED, env="PROA_STORE_SHARD", minimum=0, maximum=4095, why="number of the shard"
    )
    coordinator: str = setting(
        REQUIRED, env="PROA_STORE_COORDINATOR", why="HOST:PORT of the coordinator"
    )
    host: str = setting("0.0.0.0", env="PROA_STORE_HOST", why=_HOST)  # noqa: S104  # other pods
    port: int = setting(
        8020, env="PROA_STORE_PORT", minimum=0, maximum=65535, why="gRPC port; 0: any"
    )
    admin_port: int = setting(
        9090, env="PROA_STORE_ADMIN_PORT", minimum=0, maximum=65535, why=_ADMIN
    )
    server: str = setting(
        "127.0.0.1:6379",
        env="PROA_STORE_SERVER",
        why="Redis or Valkey: HOST:PORT, or a socket's path",
    )
    calls_max: int = setting(
        512, env="PROA_STORE_CALLS_MAX", minimum=1, maximum=100_000, why="pushes at once"
    )
    message_bytes_max: int = setting(
        64 << 20,
        env="PROA_STORE_MESSAGE_BYTES_MAX",
        unit="bytes",
        minimum=1 << 20,
        maximum=(1 << 31) - 1,
        why=_MESSAGE,
    )
    grace_s: float = setting(
        2.0,
        env="PROA_STORE_GRACE_S",
        unit="s",
        minimum=0.0,
        maximum=600.0,
        why="time that pushes under way have to end when the process is told to stop",
    )
    tls_dir: Path | None = setting(None, env=TLS_SETTING, why=_TLS)
    server_user: str = setting(
        "",
        env="PROA_STORE_SERVER_USER",
        why="user that owns PROA_STORE_SERVER; not set: the default user",
    )
    server_password_file: Path | None = setting(
        None,
        env="PROA_STORE_SERVER_PASSWORD_FILE",
        why="file with the password of PROA_STORE_SERVER_USER",
    )
    reader_user: str = setting("", env="PROA_STORE_READER_USER", why=_READER)
    reader_password_file: Path | None = setting(
        None, env="PROA_STORE_READER_PASSWORD_FILE", why=_READER_FILE
    )
    sweep_rows_per_s_max: int = setting(
        50_000,
        env="PROA_STORE_SWEEP_ROWS_PER_S_MAX",
        unit="rows/s",
        minimum=0,
        maximum=1 << 30,
        why="rows decoded in the background, and rows scrubbed; 0: no limit",
    )
    faults: bool = setting(
        False,
        env="PROA_STORE_FAULTS",
        why="serve FaultInjector; for chaos experiments only",
    )
    crash_at: str = setting(
        "",
        env="PROA_STORE_CRASH_AT",
        why="tests only: STEP:N kills the process at the Nth W1, W2, W3, ACK (of a parity block) or"
        " W4; STEP:N:STOP stops it",
    )

    @property
    def own(self) -> Access:
        """To the shard's own server. Errors: SettingsError, EnvironmentLacks."""
        return read_access(
            self.tls_dir, self.server_user, self.server_password_file, SERVER_SETTINGS
        )

    @property
    def others(self) -> Access:
        """To those of other shards. Errors: SettingsError, EnvironmentLacks."""
        return read_access(
            self.tls_dir, self.reader_user, self.reader_password_file, READER_SETTINGS
        )


@dataclass(frozen=True)
class ShardAddress:
    """agent: of its gRPC port; server: of its Redis or Valkey; domain: its failure domain."""

    agent: str
    server: str
    domain: str


@dataclass(frozen=True)
class CoordinatorSettings:
    """See `why` of each. Credentials for S3 come from AWS_* variables, as everywhere."""

    shards: str = setting(
        REQUIRED,
        env="PROA_STORE_SHARDS",
        why="AGENT|SERVER@DOMAIN for each shard, with commas between; see docs/store.md",
    )
    state: str = setting(
        REQUIRED,
        env="PROA_STORE_STATE",
        why="file of the map and the tables, locked; configmap:NAME: a ConfigMap of our namespace",
    )
    holder: str = setting(
        "", env="PROA_STORE_HOLDER", why="with configmap: our pod's name, for the Lease NAME"
    )
    k: int = setting(2, env="PROA_STORE_K", minimum=1, maximum=16, why="data blocks of a stripe")
    r: int = setting(1, env="PROA_STORE_R", minimum=0, maximum=2, why="parity blocks of a stripe")
    host: str = setting("0.0.0.0", env="PROA_STORE_HOST", why=_HOST)  # noqa: S104  # other pods
    port: int = setting(
        8021, env="PROA_STORE_PORT", minimum=0, maximum=65535, why="gRPC port; 0: any"
    )
    admin_port: int = setting(
        9090, env="PROA_STORE_ADMIN_PORT", minimum=0, maximum=65535, why=_ADMIN
    )
    calls_max: int = setting(
        512, env="PROA_STORE_CALLS_MAX", minimum=1, maximum=100_000, why="calls at once"
    )
    message_bytes_max: int = setting(
        64 << 20,
        env="PROA_STORE_MESSAGE_BYTES_MAX",
        unit="bytes",
        minimum=1 << 20,
        maximum=(1 << 31) - 1,
        why=_MESSAGE,
    )
    grace_s: float = setting(
        2.0,
        env="PROA_STORE_GRACE_S",
        unit="s",
        minimum=0.0,
        maximum=600.0,
        why="time that calls under way have to end when the process is told to stop",
    )
    tls_dir: Path | None = setting(None, env=TLS_SETTING, why=_TLS)
    reader_user: str = setting("", env="PROA_STORE_READER_USER", why=_READER)
    reader_password_file: Path | None = setting(
        None, env="PROA_STORE_READER_PASSWORD_FILE", why=_READER_FILE
    )

    s3_endpoint: str = setting(
        S3_ENDPOINT,
        env="PROA_STORE_S3_ENDPOINT",
        why="of snapshots in s3://: http:// or https://, host and port",
    )
    s3_region: str | None = setting(
        None, env="PROA_STORE_S3_REGION", why="of the bucket; not set: the server is asked"
    )

    @property
    def others(self) -> Access:
        """To the shards' servers. Errors: SettingsError, EnvironmentLacks."""
        return read_access(
            self.tls_dir, self.reader_user, self.reader_password_file, READER_SETTINGS
        )

    @property
    def addresses(self) -> tuple[ShardAddress, ...]:
        """By shard. Errors: SettingsError."""
        return tuple(_address(one) for one in self.shards.split(","))


def _address(text: str) -> ShardAddress:
    agent, bar, rest = text.strip().partition("|")
    server, at, domain = rest.rpartition("@")
    if not (bar and at and domain):
        raise SettingsError(f"PROA_STORE_SHARDS: {text!r} is not AGENT|SERVER@DOMAIN")
    check_address(agent)
    if not server.startswith("/"):
        check_address(server)
    server_at(server)
    return ShardAddress(agent, server, domain)
