"""Reads a service's certificate, key and CA, and says early what would fail late.

A peer that refuses a certificate says no more than that; what is wrong with our own we can tell
ourselves, with file and date.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from proa.errors import EnvironmentLacks

CERTIFICATE, KEY, CA = "tls.crt", "tls.key", "ca.crt"
FILE_BYTES_MAX = 1 << 20
CERTIFICATES_MAX = 100  # in one file
CHAIN_MAX = 8

_USAGES = (
    (ExtendedKeyUsageOID.SERVER_AUTH, "server auth"),
    (ExtendedKeyUsageOID.CLIENT_AUTH, "client auth"),
)


@dataclass(frozen=True)
class Pem:
    """The files as they are; `ca` empty where there is none. `folder`: where they lie."""

    folder: Path
    certificate: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True)
class Certificates:
    """Files that passed every check, and when the first certificate of the chain ends."""

    pem: Pem
    starts: dt.datetime
    ends: dt.datetime

    def complaint(self, now: dt.datetime) -> str | None:
        """Why the certificate is not valid now, or None."""
        path = self.pem.folder / CERTIFICATE
        if now > self.ends:
            return f"{path} expired on {_day(self.ends)}"
        if now < self.starts:
            return f"{path} is not valid before {_day(self.starts)}"
        return None


def read_pem(folder: Path) -> Pem:
    """Errors: EnvironmentLacks (a file other than ca.crt is missing; too large)."""
    return Pem(
        folder,
        _read(folder / CERTIFICATE),
        _read(folder / KEY),
        _read(folder / CA) if (folder / CA).exists() else b"",
    )


def check(pem: Pem, *, name: str | None, now: dt.datetime) -> Certificates:
    """The certificates in `pem`, usable as server and client of our mutual TLS.

    name: what peers expect the certificate to be for, in which case it must be of the CA in ca.crt;
    None: towards clients, which check by themselves. Errors: EnvironmentLacks names file and fault.
    """
    path = pem.folder / CERTIFICATE
    chain = _certificates(path, pem.certificate)
    _check_key(pem, chain[0])
    found = Certificates(
        pem,
        max(one.not_valid_before_utc for one in chain),
        min(one.not_valid_after_utc for one in chain),
    )
    if complaint := found.complaint(now):
        raise EnvironmentLacks(complaint)
    authorities = _authorities(pem, now)
    if name is not None:
        _check_name(path, chain[0], name)
        _check_issuer(pem, chain, authorities)
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise EnvironmentLacks(f"{path}: {exc.strerror}") from exc
    if not 0 < len(content) <= FILE_BYTES_MAX:
        raise EnvironmentLacks(f"{path}: must have 1 to {FILE_BYTES_MAX} bytes")
    return content


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError as exc:
        raise EnvironmentLacks(f"{path}: holds no PEM certificate that can be read") from exc
    if len(found) > CERTIFICATES_MAX:
        raise EnvironmentLacks(
            f"{path}: {len(found)} certificates; the limit is {CERTIFICATES_MAX}"
        )
    return found


def _check_key(pem: Pem, leaf: x509.Certificate) -> None:
    path = pem.folder / KEY
    try:
        key = load_pem_private_key(pem.key, password=None)
    except (ValueError, TypeError) as exc:  # TypeError: it has a passphrase
        raise EnvironmentLacks(f"{path}: holds no PEM key without passphrase") from exc
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise EnvironmentLacks(f"{path} is not the key of {CERTIFICATE}")


def _authorities(pem: Pem, now: dt.datetime) -> list[x509.Certificate]:
    """The CAs, of which one at least is valid now; none where there is no ca.crt."""
    if not pem.ca:
        return []
    path = pem.folder / CA
    found = _certificates(path, pem.ca)
    if all(one.not_valid_after_utc < now for one in found):
        last = max(one.not_valid_after_utc for one in found)
        raise EnvironmentLacks(f"{path} expired on {_day(last)}")
    return found


def _check_name(path: Path, leaf: x509.Certificate, name: str) -> None:
    names = list(_names(leaf))
    if name not in names:
        has = ", ".join(names[:8]) or "no DNS name"
        raise EnvironmentLacks(f"{path}: is for {has}; peers expect the DNS name {name}")
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    for usage, what in _USAGES:
        if usage not in usages:
            raise EnvironmentLacks(f"{path}: lacks the usage {what!r}; it needs server and client")


def _names(leaf: x509.Certificate) -> Iterator[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    yield from found.get_values_for_type(x509.DNSName)


def _check_issuer(
    pem: Pem, chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> None:
    """The chain leads to a CA of ours: otherwise every peer would refuse us."""
    if not authorities:
        raise EnvironmentLacks(f"{pem.folder / CA}: No such file; it says whom to believe")
    current = chain[0]
    for _ in range(CHAIN_MAX):
        if current in authorities or any(_issued(current, ca) for ca in authorities):
            return
        above = next((one for one in chain if one != current and _issued(current, one)), None)
        if above is None:
            break
        current = above
    raise EnvironmentLacks(f"{pem.folder / CERTIFICATE}: is not of the CA in {CA}")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _day(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")
