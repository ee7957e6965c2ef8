"""The locks on the frontend's doors: TLS towards services, TLS towards clients, tokens."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from proa.errors import SettingsError, Unavailable
from proa.frontend.auth import Auth, Gate
from proa.frontend.settings import FrontendSettings
from proa.rpc import FRONTEND
from proa.runtime.tls import TlsFiles, export_expiry, open_tls

log = logging.getLogger(__name__)

# Who holds a connection shows its certificate again after so long; streams on it go on.
CONNECTION_S_MAX = 3600.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Locks:
    """services: mutual TLS to workers, encoders and decoders; clients: TLS of our own port."""

    services: TlsFiles | None
    clients: TlsFiles | None
    auth: Auth

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """Of the port that clients call."""
        return self.clients.server() if self.clients else None

    @property
    def interceptors(self) -> list[grpc.aio.ServerInterceptor[Any, Any]]:
        return [Gate(self.auth)] if self.auth.wanted else []

    @property
    def connection_s_max(self) -> float | None:
        """How long a connection of a client may last."""
        return CONNECTION_S_MAX if self.clients or self.auth.wanted else None

    @property
    def valid(self) -> bool:
        """Whether peers and clients will believe our certificates."""
        try:
            for tls in (self.services, self.clients):
                if tls is not None:
                    tls.check()
        except Unavailable:
            return False
        return True

    def roots(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What keeps up with the files."""
        found: dict[str, Callable[[], Awaitable[None]]] = {}
        if self.services is not None:
            found["certificate for services"] = self.services.watch
        if self.clients is not None:
            found["certificate for clients"] = self.clients.watch
        if self.auth.wanted:
            found["tokens"] = self.auth.watch
        return found


def open_locks(settings: FrontendSettings, registry: CollectorRegistry) -> Locks:
    """What the settings name. Errors: EnvironmentLacks, SettingsError."""
    if settings.faults and settings.tokens is None and settings.host not in LOOPBACK:
        raise SettingsError(
            "PROA_FRONTEND_FAULTS: whoever reaches the port could inject faults; set"
            " PROA_FRONTEND_TOKENS, with a token that has `faults: true`, or listen on loopback:"
            " PROA_FRONTEND_HOST=127.0.0.1"
        )
    services = open_tls(settings.tls_dir, "PROA_FRONTEND_TLS_DIR", FRONTEND)
    clients = open_tls(settings.client_tls_dir, "PROA_FRONTEND_CLIENT_TLS_DIR")
    export_expiry(registry, {"services": services, "clients": clients})
    auth = Auth(settings.tokens, registry)
    if clients is None and (services is not None or auth.wanted):
        # No error: a gateway or mesh in front may do it.
        what = "tokens and tensors" if auth.wanted else "tensors"
        log.warning(
            "clients come without TLS, their %s can be read on the way; unless something in front"
            " ends TLS, set PROA_FRONTEND_CLIENT_TLS_DIR",
            what,
        )
    return Locks(services, clients, auth)
