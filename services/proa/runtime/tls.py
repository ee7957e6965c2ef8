"""A service's TLS: the mounted certificate, checked at the start, watched, renewed while serving.

A renewal needs no restart: servers ask for the certificate at every handshake, and `rpc.Channels`
makes new channels once `version` has changed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, Gauge

from proa import rpc
from proa.errors import EnvironmentLacks, Unavailable
from proa.runtime.certificates import Certificates, check, read_pem

log = logging.getLogger(__name__)

WATCH_S = 2.0


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class TlsFiles:
    """tls.crt, tls.key and ca.crt in `folder`, as cert-manager writes them.

    setting: the variable that names the folder, for errors. role: among our services, where client
    and server show certificates of the CA in ca.crt, for the DNS name proa-<role>; None: towards
    clients, who must show a certificate only if there is a ca.crt. Errors: EnvironmentLacks names
    file and fault.
    """

    def __init__(
        self,
        folder: Path,
        setting: str,
        role: str | None = None,
        *,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._folder = folder
        self._setting = setting
        self._name = None if role is None else rpc.peer_name(role)
        self._now = now
        self._renewed = asyncio.Event()
        self._refused = ""
        self.version = 0
        try:
            self._current = self._read()
        except EnvironmentLacks as exc:
            raise EnvironmentLacks(f"{setting}: {exc}") from exc
        self._server = self._configuration()
        self._channel = self._credentials()

    @property
    def current(self) -> Certificates:
        """What is in force."""
        return self._current

    def server(self) -> grpc.ServerCredentials:
        """For a server; follows renewals."""
        return grpc.dynamic_ssl_server_credentials(
            self._server,
            lambda: self._server,  # called by gRPC's own threads, at each handshake
            require_client_authentication=bool(self._current.pem.ca),
        )

    def channel(self, role: str) -> rpc.ChannelTls:
        """For a channel to a service of this role; as of now."""
        return rpc.ChannelTls(self._channel, rpc.peer_name(role))

    def check(self) -> None:
        """Our certificate is valid now. Errors: Unavailable; peers would refuse us."""
        if complaint := self._current.complaint(self._now()):
            raise Unavailable(f"{self._setting}: {complaint}")

    async def watch(self, interval_s: float = WATCH_S) -> None:
        """Follow the files. Never returns. What cannot be used is logged; the old stays in force.

        Polled: a mounted secret changes by a swap of links, for which events are not to be relied
        on.
        """
        expired = False
        while True:
            await asyncio.sleep(interval_s)
            self.reload()
            complaint = self._current.complaint(self._now())
            if complaint and not expired:
                log.error("%s: %s, and was not renewed", self._setting, complaint)
            expired = complaint is not None

    async def renewed(self, since: int) -> None:
        """Return once `version` is no longer `since`."""
        while self.version == since:
            self._renewed.clear()
            await self._renewed.wait()

    def reload(self) -> bool:
        """Look at the files now; whether they were renewed."""
        try:
            found = self._read()
        except EnvironmentLacks as exc:
            if str(exc) != self._refused:
                self._refused = str(exc)
                log.warning("certificate not renewed: %s", exc)
            return False
        self._refused = ""
        if found.pem == self._current.pem:
            return False
        if bool(found.pem.ca) != bool(self._current.pem.ca):
            log.warning("ca.crt came or went: that takes a restart, until then nothing is renewed")
            return False
        self._current = found
        self._server = self._configuration()
        self._channel = self._credentials()
        self.version += 1
        self._renewed.set()
        log.info("certificate renewed folder=%s expires=%s", self._folder, found.ends.isoformat())
        return True

    def _read(self) -> Certificates:
        return check(read_pem(self._folder), name=self._name, now=self._now())

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pem = self._current.pem
        pairs = [(pem.key, pem.certificate)]
        return grpc.ssl_server_certificate_configuration(pairs, pem.ca or None)

    def _credentials(self) -> grpc.ChannelCredentials:
        pem = self._current.pem
        return grpc.ssl_channel_credentials(pem.ca or None, pem.key, pem.certificate)


def open_tls(folder: Path | None, setting: str, role: str | None = None) -> TlsFiles | None:
    """The TLS of a service, where it is to have one. Errors: EnvironmentLacks."""
    return None if folder is None else TlsFiles(folder, setting, role)


def export_expiry(registry: CollectorRegistry, tls: Mapping[str, TlsFiles | None]) -> None:
    """The metric of when certificates end, by what they are used for."""
    gauge = Gauge(
        "proa_tls_certificate_expiry_seconds",
        "Unix time at which our certificate expires",
        ["use"],
        registry=registry,
    )
    for use, files in tls.items():
        if files is not None:
            gauge.labels(use).set_function(_expiry_of(files))


def _expiry_of(files: TlsFiles) -> Callable[[], float]:
    return lambda: files.current.ends.timestamp()
