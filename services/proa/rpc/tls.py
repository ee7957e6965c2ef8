"""TLS of a channel: what a client shows, whom it believes, and what a failed handshake means."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio

from proa.errors import InvalidRequest

FRONTEND, ENCODER, DECODER, WORKER = "frontend", "encoder", "decoder", "worker"
FILE_BYTES_MAX = 1 << 20
TOKEN_CHARS_MAX = 512

_TOKEN = re.compile(r"[\x21-\x7e]+")
Metadata = tuple[tuple[str, str], ...]

# What gRPC says of a handshake that failed, and what that means. Most telling first.
_REASONS = (
    ("certificate has expired", "TLS: its certificate has expired"),
    ("certificate is not yet valid", "TLS: its certificate is not yet valid"),
    ("Hostname Verification Check failed", "TLS: its certificate is for another name"),
    ("CERTIFICATE_VERIFY_FAILED", "TLS: its certificate is not of a CA that we believe"),
    # A CA of the same name with another key, as after an installation anew.
    ("certificate signature failure", "TLS: its certificate is not of a CA that we believe"),
    ("WRONG_VERSION_NUMBER", "TLS: it does not speak TLS"),
    ("Tls handshake failed", "TLS: the handshake failed"),
    ("Socket closed", "it hung up at once: it may want TLS, or another client certificate"),
)
_UNCONNECTED = "failed to connect to all addresses"


@dataclass(frozen=True)
class ChannelTls:
    """What `connect` needs. name: what the server's certificate must be for; None: the host."""

    credentials: grpc.ChannelCredentials
    name: str | None = None


class PeerTls(Protocol):
    """Credentials towards our own services, which change as certificates are renewed."""

    @property
    def version(self) -> int:
        """Another number after each change."""
        ...

    def channel(self, role: str) -> ChannelTls:
        """For a channel to a service of this role."""
        ...


@dataclass(frozen=True)
class Tls:
    """How a client speaks TLS. All files are PEM.

    ca: certificates of the authorities to believe; None: those that gRPC brings. cert, key: the
    client's own, for servers that ask for one; both or none. server_name: what the server's
    certificate must be for, where that is not the host of the address (a port-forward).
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = field(default=None, repr=False)
    server_name: str | None = None

    def read(self) -> ChannelTls:
        """Errors: InvalidRequest names the file."""
        if (self.cert is None) != (self.key is None):
            raise InvalidRequest("tls: cert and key belong together, one of them is missing")
        if self.cert is not None and self.key is not None:
            _check_pair(Path(self.cert), Path(self.key))
        credentials = grpc.ssl_channel_credentials(
            _read(self.ca, "ca"), _read(self.key, "key"), _read(self.cert, "cert")
        )
        return ChannelTls(credentials, self.server_name)


def peer_name(role: str) -> str:
    """What certificates of our services are for: a role, as addresses of pods come and go."""
    return f"proa-{role}"


def open_channel(
    address: str, tls: ChannelTls | None, options: Sequence[tuple[str, int | str]]
) -> grpc.aio.Channel:
    """An asyncio channel to host:port, secure with `tls`."""
    target = target_of(address)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.credentials, options=[*options, *named(tls)])


def open_channel_sync(
    address: str, tls: ChannelTls | None, options: Sequence[tuple[str, int | str]]
) -> grpc.Channel:
    """The synchronous counterpart of `open_channel`."""
    target = target_of(address)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials, options=[*options, *named(tls)])


def target_of(address: str) -> str:
    """Without the scheme a host named `unix` or `dns` would be taken for one."""
    return f"dns:///{address}"


def named(tls: ChannelTls) -> list[tuple[str, str]]:
    """Channel options that say what the server's certificate must be for."""
    return [("grpc.ssl_target_name_override", tls.name)] if tls.name else []


def reason_of(details: str) -> str | None:
    """Why a connection failed, if `details` of an UNAVAILABLE tell of a handshake; else None."""
    if _UNCONNECTED not in details:
        return None
    return next((why for words, why in _REASONS if words in details), None)


def bearer(token: str | None) -> Metadata | None:
    """Metadata of a call with this token. Errors: InvalidRequest (never shows the token)."""
    if token is None:
        return None
    if len(token) > TOKEN_CHARS_MAX or not _TOKEN.fullmatch(token):
        raise InvalidRequest(
            f"token: must be 1 to {TOKEN_CHARS_MAX} visible ASCII characters without blanks"
        )
    return (("authorization", f"Bearer {token}"),)


def _read(path: Path | str | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            found = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise InvalidRequest(f"tls: {what} {path}: {exc.strerror}") from exc
    if len(found) > FILE_BYTES_MAX:
        raise InvalidRequest(f"tls: {what} {path}: larger than {FILE_BYTES_MAX} bytes")
    if b"-----BEGIN " not in found:
        raise InvalidRequest(f"tls: {what} {path}: is not PEM")
    return found


def _check_pair(cert: Path, key: Path) -> None:
    """gRPC would only say at the first call, and not which file, that they do not fit."""
    _read(cert, "cert")
    _read(key, "key")
    try:
        # A passphrase is never asked for: nobody may sit at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as exc:
        raise InvalidRequest(f"tls: key {key} does not fit cert {cert}, or is not PEM") from exc
