"""How a process of the store proves who it is: a certificate everywhere, a user at the servers.

Maps carry addresses alone: with which certificate and as which user we connect is our own affair.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from proa import rpc
from proa.errors import EnvironmentLacks, SettingsError
from proa.runtime.certificates import CA, CERTIFICATE, KEY
from proa.store.post import ROLE
from proa.store.redis_disk import Server
from proa.store.told import server_at

PASSWORD_BYTES_MAX = 4096
TLS_SETTING = "PROA_STORE_TLS_DIR"
SERVER_SETTINGS = ("PROA_STORE_SERVER_USER", "PROA_STORE_SERVER_PASSWORD_FILE")
READER_SETTINGS = ("PROA_STORE_READER_USER", "PROA_STORE_READER_PASSWORD_FILE")


@dataclass(frozen=True, slots=True)
class Access:
    """To the shards' servers. tls_dir: tls.crt, tls.key, ca.crt, read anew by every connection to
    HOST:PORT; the server's certificate must be for the DNS name proa-store. None: no TLS.

    user, password: of the server's ACL; no user: nothing is said.
    """

    tls_dir: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)

    def server(self, address: str) -> Server:
        """host:port, or the path of a unix socket, as maps have them."""
        found = server_at(address)
        if self.user:
            found = replace(found, username=self.user, password=self.password)
        if self.tls_dir is not None and not found.path:
            found = replace(
                found,
                ca=str(self.tls_dir / CA),
                cert=str(self.tls_dir / CERTIFICATE),
                key=str(self.tls_dir / KEY),
                name=rpc.peer_name(ROLE),
            )
        return found


def read_access(
    tls_dir: Path | None, user: str, password: Path | None, named: tuple[str, str]
) -> Access:
    """`password`: the file, without the line break at its end; `named`: what `user` and `password`
    are called, for errors. Errors: SettingsError, EnvironmentLacks."""
    if not user and password is None:
        return Access(tls_dir)
    if not user or password is None:
        raise SettingsError(f"{named[0]} and {named[1]} belong together")
    try:
        with password.open("rb") as file:
            text = file.read(PASSWORD_BYTES_MAX + 1)
    except OSError as exc:
        raise EnvironmentLacks(f"{named[1]}: {password}: {exc.strerror}") from exc
    if len(text) > PASSWORD_BYTES_MAX:
        raise EnvironmentLacks(f"{named[1]}: {password}: more than {PASSWORD_BYTES_MAX} bytes")
    word = text.decode("utf-8", "replace").strip("\r\n")
    if not word:
        raise EnvironmentLacks(f"{named[1]}: {password}: is empty")
    return Access(tls_dir, user, word)
