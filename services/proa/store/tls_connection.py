"""A TLS connection to a shard's server, whose certificate is for a role, not for a host."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import Connection


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Paths of PEM files; `name`: what the server's certificate must be for, empty: the host."""

    ca: str
    cert: str = ""
    key: str = ""
    name: str = ""

    def context(self) -> ssl.SSLContext:
        """Believes in `ca` alone. Errors: OSError, among them ssl.SSLError."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None, password="")
        return context


class TlsConnection(Connection):
    """Reads the files when it connects: what was renewed is used by the next connection."""

    def __init__(self, tls: ServerTls, **options: Any) -> None:
        self._tls = tls
        super().__init__(**options)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = super()._connection_arguments()
        name = self._tls.name or self.host
        return {**arguments, "ssl": self._tls.context(), "server_hostname": name}
