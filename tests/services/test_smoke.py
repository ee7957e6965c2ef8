"""The helm test against a real frontend over fake workers."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import cluster, frontend, worker_list, write_spec
from fakes.pki import Authority, secret
from fakes.triton_fake import FakeTriton
from proa.cluster.settings import SmokeSettings
from proa.cluster.smoke import smoke
from proa.errors import ProaError, SettingsError, SpecError, Unavailable

PARITY = "policy: parity, qualitySample: 0"


@pytest.fixture(autouse=True)
def _shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="proa.cluster.smoke")


def settings(address: str, specs: Path, **others: Any) -> SmokeSettings:
    return SmokeSettings(address=address, specs=specs, **{"timeout_s": 20.0, **others})


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "proa.cluster.smoke"]


async def test_every_model_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(tmp_path, "policy: none") as served:
        await smoke(settings(served.address, tmp_path))
    (line,) = lines(caplog)
    assert line.startswith("ok model=digits sources=worker:5 ms=")


async def test_a_reconstruction_is_demanded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path, PARITY) as served:
        await smoke(settings(served.address, tmp_path, reconstruct=True))
    (line,) = lines(caplog)
    assert "reconstructed=yes" in line


async def test_a_code_that_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One worker alone has no place for a parity query."""
    async with cluster(tmp_path, PARITY, workers=1) as served:
        with pytest.raises(ProaError, match="1 of 1 models failed: digits"):
            await smoke(settings(served.address, tmp_path, reconstruct=True, queries=1))
    (line,) = lines(caplog)
    assert "FAILED model=digits error=not reconstructed in 2 tries" in line
    assert "came from 'worker'" in line


async def test_no_reconstruction_of_a_model_without_parity(tmp_path: Path) -> None:
    async with cluster(tmp_path, "policy: none") as served:
        await smoke(settings(served.address, tmp_path, reconstruct=True))


async def test_one_line_per_model_and_those_that_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path, "policy: none") as served:
        write_spec(tmp_path, "policy: none", "absent")
        with pytest.raises(ProaError, match="1 of 2 models failed: absent"):
            await smoke(settings(served.address, tmp_path))
    first, second = lines(caplog)
    assert first.startswith("FAILED model=absent error=")
    assert second.startswith("ok model=digits")


async def test_another_model_than_the_spec_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path, "policy: none") as served:
        file = tmp_path / "digits.yaml"
        file.write_text(file.read_text().replace("logits", "scores"))
        with pytest.raises(ProaError, match="1 of 1 models failed"):
            await smoke(settings(served.address, tmp_path))
    (line,) = lines(caplog)
    assert "outputs are [('logits', 'FP32')], the spec says [('scores', 'FP32')]" in line


async def test_a_frontend_that_does_not_become_ready(tmp_path: Path) -> None:
    specs = str(write_spec(tmp_path))
    async with frontend(specs=specs, workers="digits=127.0.0.1:1@w0") as served:
        with pytest.raises(Unavailable, match="did not become ready: it says that it is not"):
            await smoke(settings(served.address, tmp_path, timeout_s=0.3))


async def test_nobody_listens(tmp_path: Path) -> None:
    write_spec(tmp_path)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 did not become ready"):
        await smoke(settings("127.0.0.1:1", tmp_path, timeout_s=0.3))


async def test_behind_tls_and_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a token that allows fewer calls at once than the test makes."""
    ca, specs = Authority(), tmp_path / "specs"
    specs.mkdir()
    own = ca.issue("tester")
    files = {"ca": ca.certificate, "cert": own.certificate, "key": own.key, "token": b"s3cret\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tenant = {"name": "tester", "sha256": hashlib.sha256(b"s3cret").hexdigest()}
    tokens = {"tokens": [{**tenant, "ratePerSecond": 50, "burst": 2}]}
    (tmp_path / "tokens.yaml").write_text(json.dumps(tokens))
    locks = {
        "client_tls_dir": secret(tmp_path / "tls", ca.issue("proa-frontend"), ca),
        "tokens": tmp_path / "tokens.yaml",
    }
    keys = {f"tls_{name}": tmp_path / name for name in ("ca", "cert", "key")}
    write_spec(specs, "policy: none")
    async with FakeTriton() as fake:
        workers = worker_list("digits", [fake])
        async with frontend(specs=str(specs), workers=workers, **locks) as served:
            token = tmp_path / "token"
            await smoke(settings(served.address, specs, token_file=token, **keys))
            with pytest.raises(ProaError, match="models failed: digits"):
                await smoke(settings(served.address, specs, **keys))
            with pytest.raises(Unavailable, match="did not become ready"):
                await smoke(settings(served.address, specs, timeout_s=0.5))
    ok, failed = lines(caplog)
    assert ok.startswith("ok model=digits")
    assert "FAILED model=digits error=" in failed
    assert "token" in failed


async def test_what_it_is_given_is_checked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"PROA_SMOKE_SPECS=.*: no \*\.yaml there"):
        await smoke(settings("127.0.0.1:1", tmp_path))
    (tmp_path / "bad.yaml").write_text("kind: Something")
    with pytest.raises(SpecError):
        await smoke(settings("127.0.0.1:1", tmp_path))
    write_spec(tmp_path, name="bad")
    with pytest.raises(SettingsError, match=r"PROA_SMOKE_TOKEN_FILE=.*absent cannot be read"):
        await smoke(settings("127.0.0.1:1", tmp_path, token_file=tmp_path / "absent"))
    with pytest.raises(SettingsError, match="need PROA_SMOKE_TLS_CA"):
        await smoke(settings("127.0.0.1:1", tmp_path, tls_cert=tmp_path / "tls.crt"))
