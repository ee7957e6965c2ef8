"""A service's certificate: what is refused at the start, and how a renewal is taken."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from prometheus_client import CollectorRegistry

from fakes.pki import DAY, HOUR, Authority, Secret, secret
from proa.errors import EnvironmentLacks, Unavailable
from proa.runtime.certificates import FILE_BYTES_MAX
from proa.runtime.tls import TlsFiles, export_expiry, open_tls, utc_now

CA = Authority("services CA")
GOOD = CA.issue("proa-encoder")
FILES = {"tls.crt": GOOD.certificate, "tls.key": GOOD.key, "ca.crt": CA.certificate}


def load(folder: Path, role: str | None = "encoder") -> TlsFiles:
    return TlsFiles(folder, "PROA_ENCODER_TLS_DIR", role)


def locked(key: bytes) -> bytes:
    """The key with a passphrase."""
    return load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_a_good_secret(tmp_path: Path) -> None:
    found = load(secret(tmp_path, GOOD, CA))
    found.check()
    assert found.version == 0
    assert found.current.ends > utc_now()


def test_a_chain_over_an_intermediate_authority(tmp_path: Path) -> None:
    middle = CA.below("middle CA")
    pair = middle.issue("proa-encoder")
    files = {**FILES, "tls.crt": pair.certificate + middle.certificate, "tls.key": pair.key}
    load(Secret(tmp_path / "chain").put_files(files))
    with pytest.raises(EnvironmentLacks, match=r"is not of the CA in ca\.crt"):
        load(Secret(tmp_path / "leaf").put_files({**files, "tls.crt": pair.certificate}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tls.crt": None}, r"tls\.crt: No such file"),
        ({"tls.key": None}, r"tls\.key: No such file"),
        ({"ca.crt": None}, r"ca\.crt: No such file; it says whom to believe"),
        ({"tls.crt": b""}, r"tls\.crt: must have 1 to 1048576 bytes"),
        ({"tls.key": b"x" * (FILE_BYTES_MAX + 1)}, r"tls\.key: must have 1 to 1048576 bytes"),
        ({"tls.crt": b"junk"}, r"tls\.crt: holds no PEM certificate"),
        ({"ca.crt": b"junk"}, r"ca\.crt: holds no PEM certificate"),
        ({"tls.key": b"junk"}, r"tls\.key: holds no PEM key without passphrase"),
        ({"tls.key": locked(GOOD.key)}, r"tls\.key: holds no PEM key without passphrase"),
        ({"tls.key": CA.issue("proa-encoder").key}, r"tls\.key is not the key of tls\.crt"),
        ({"ca.crt": Authority().certificate}, r"tls\.crt: is not of the CA in ca\.crt"),
        ({"tls.crt": GOOD.certificate * 101}, r"101 certificates; the limit is 100"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    files = {name: content for name, content in {**FILES, **change}.items() if content is not None}
    Secret(tmp_path).put_files(files)
    with pytest.raises(EnvironmentLacks, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith("PROA_ENCODER_TLS_DIR: /")


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        (-2 * DAY, -HOUR, r"tls\.crt expired on 20\d\d-\d\d-\d\d \d\d:\d\d UTC"),
        (HOUR, DAY, r"tls\.crt is not valid before 20\d\d-"),
    ],
)
def test_a_certificate_out_of_its_time(
    tmp_path: Path, starts: dt.timedelta, ends: dt.timedelta, message: str
) -> None:
    secret(tmp_path, CA.issue("proa-encoder", starts=starts, ends=ends), CA)
    with pytest.raises(EnvironmentLacks, match=message):
        load(tmp_path)


def test_a_certificate_for_something_else(tmp_path: Path) -> None:
    secret(tmp_path / "name", CA.issue("proa-worker", names=["x.svc"]), CA)
    with pytest.raises(
        EnvironmentLacks, match=r"is for proa-worker, x\.svc; peers expect the DNS name proa-enc"
    ):
        load(tmp_path / "name")
    secret(tmp_path / "usage", CA.issue("proa-encoder", client=False), CA)
    with pytest.raises(EnvironmentLacks, match="lacks the usage 'client auth'"):
        load(tmp_path / "usage")


def test_an_expired_authority(tmp_path: Path) -> None:
    secret(tmp_path, GOOD, Authority("old CA", ends=-HOUR))
    with pytest.raises(EnvironmentLacks, match=r"ca\.crt expired on 20"):
        load(tmp_path)


def test_towards_clients_any_authority_and_name_will_do(tmp_path: Path) -> None:
    found = load(secret(tmp_path, Authority().issue("proa.example.com")), role=None)
    assert found.current.pem.ca == b""


def test_no_folder_no_tls() -> None:
    assert open_tls(None, "PROA_ENCODER_TLS_DIR", "encoder") is None


def test_a_renewal_is_taken(tmp_path: Path) -> None:
    mounted = Secret(tmp_path)
    mounted.put(GOOD, CA)
    found = load(tmp_path)
    assert not found.reload()
    before = found.channel("worker").credentials
    mounted.put(CA.issue("proa-encoder"), CA)
    assert found.reload()
    assert found.version == 1
    assert found.channel("worker").credentials is not before


def test_what_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = Secret(tmp_path)
    mounted.put(GOOD, CA)
    found = load(tmp_path)
    mounted.put(CA.issue("proa-encoder", ends=-HOUR), CA)
    with caplog.at_level(logging.WARNING):
        assert not found.reload()
        assert not found.reload()
    assert len(caplog.records) == 1, "said once, not every five seconds"
    assert "certificate not renewed" in caplog.text
    found.check()
    mounted.put(GOOD)
    assert not found.reload(), "an authority that is gone is no renewal"


def test_our_own_expiry_is_told(tmp_path: Path) -> None:
    secret(tmp_path, GOOD, CA)
    now = utc_now()
    found = TlsFiles(tmp_path, "PROA_ENCODER_TLS_DIR", "encoder", now=lambda: now)
    found.check()
    now += 60 * DAY
    with pytest.raises(Unavailable, match=r"PROA_ENCODER_TLS_DIR: .*tls\.crt expired on"):
        found.check()


async def test_renewed_wakes_who_waits(tmp_path: Path) -> None:
    mounted = Secret(tmp_path)
    mounted.put(GOOD, CA)
    found = load(tmp_path)
    watching = asyncio.create_task(found.watch(0.01))
    waiting = asyncio.create_task(found.renewed(0))
    mounted.put(CA.issue("proa-encoder"), CA)
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(found.renewed(0), 5)  # at once: it was renewed since
    watching.cancel()


def test_expiry_is_a_metric(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    found = load(secret(tmp_path, GOOD, CA))
    export_expiry(registry, {"services": found, "clients": None})
    told = registry.get_sample_value("proa_tls_certificate_expiry_seconds", {"use": "services"})
    assert told == found.current.ends.timestamp()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_commands_in_the_docs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "security.md"
    (script,) = re.findall(r"```sh\n(openssl.*?)```", page.read_text(), re.DOTALL)
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    for role in ("frontend", "encoder", "decoder", "worker"):
        TlsFiles(tmp_path / "tls" / role, "PROA_TLS_DIR", role)
