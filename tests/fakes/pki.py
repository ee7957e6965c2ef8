"""Certificate authorities and certificates for tests: elliptic keys, made in a millisecond."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROLES = ("proa-frontend", "proa-encoder", "proa-decoder", "proa-worker", "proa-store")
LOOPBACK = ipaddress.ip_address("127.0.0.1")
DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA that signs whatever a test needs; of itself, or below `above`."""

    def __init__(
        self,
        name: str = "test CA",
        *,
        ends: dt.timedelta = 30 * DAY,
        above: Authority | None = None,
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        issuer = above or self
        made = _builder(self._name, issuer._name, self._key.public_key(), -2 * DAY, ends)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = made.sign(issuer._key, hashes.SHA256())

    def below(self, name: str) -> Authority:
        """An intermediate authority."""
        return Authority(name, above=self)

    @property
    def certificate(self) -> bytes:
        """PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        name: str,
        *,
        starts: dt.timedelta = -DAY,
        ends: dt.timedelta = 30 * DAY,
        names: Sequence[str] = (),
        client: bool = True,
    ) -> Pair:
        """A certificate for `name`, `names` and 127.0.0.1, for servers and (`client`) clients.
        starts, ends: from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in (name, *names)]
        alternatives.append(x509.IPAddress(LOOPBACK))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        usages += [ExtendedKeyUsageOID.CLIENT_AUTH] if client else []
        made = (
            _builder(_name(name), self._name, key.public_key(), starts, ends)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Pair(made.public_bytes(serialization.Encoding.PEM), _pem_of(key))


class Secret:
    """A folder as the kubelet mounts a Secret: files are links into `..data`, itself a link that
    a change swaps in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._version = len(list(folder.glob("..version*")))

    def put(self, pair: Pair, *authorities: Authority) -> Path:
        """Write tls.crt and tls.key, and ca.crt where there are authorities."""
        files = {"tls.crt": pair.certificate, "tls.key": pair.key}
        if authorities:
            files["ca.crt"] = b"".join(one.certificate for one in authorities)
        return self.put_files(files)

    def put_files(self, files: dict[str, bytes]) -> Path:
        """Swap to these files."""
        self._version += 1
        data = self.folder / f"..version{self._version}"
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        return self.folder


def secret(folder: Path, pair: Pair, *authorities: Authority) -> Path:
    """A mounted Secret that a test does not change."""
    return Secret(folder).put(pair, *authorities)


def secrets_of_roles(folder: Path, authority: Authority) -> dict[str, Path]:
    """A mounted Secret for each role, by role without `proa-`."""
    return {
        role.removeprefix("proa-"): secret(folder / role, authority.issue(role), authority)
        for role in ROLES
    }


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    starts: dt.timedelta,
    ends: dt.timedelta,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
    )


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
