"""The whole path behind TLS: client, frontend, encoder, decoder and workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from fakes.cluster import (
    Cluster,
    Frontend,
    Load,
    cluster,
    frontend,
    until,
    worker_list,
    write_spec,
)
from fakes.locked import Locks, decoder, encoder
from fakes.pki import HOUR, Authority, Pair, Secret, secret
from fakes.triton_fake import images, linear
from proa.cli.main import main
from proa.client import AsyncClient, Client, InvalidRequest, Tls, Unavailable
from proa.errors import EnvironmentLacks

PARITY = (
    "policy: parity, patience: first, placement: pod, groupMsMax: 1, idleReserve: 0,"
    " qualitySample: 0"
)
PUBLIC = Authority("public CA")
SERVER = PUBLIC.issue("proa.example.com")


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path / "secrets")


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """The file with the CA that clients believe."""
    path = tmp_path / "public.crt"
    path.write_bytes(PUBLIC.certificate)
    return path


@contextlib.asynccontextmanager
async def front(folder: Path, locks: Locks, **settings: Any) -> AsyncIterator[Frontend]:
    """A frontend that is ready, with TLS towards a worker, and `settings`."""
    async with locks.worker() as worker:
        values = {"specs": str(write_spec(folder)), "workers": worker_list("digits", [worker])}
        values |= {"tls_dir": locks.folders["frontend"], **settings}
        async with frontend(**values) as served:
            await until(lambda: is_ready(served))
            yield served


async def is_ready(served: Frontend) -> bool:
    return (await served.page("/readyz"))[0] == 200


async def infer(address: str, tls: Tls | None) -> None:
    (image,) = images(1)
    async with AsyncClient(address, tls=tls, deadline_s=10.0) as client:
        answer = await client.infer("digits", image)
    assert abs(answer.only - linear(image)).max() < 1e-3


def infer_sync(address: str, tls: Tls) -> None:
    (image,) = images(1)
    with Client(address, tls=tls, deadline_s=10.0) as client:
        client.infer("digits", image)
        client.infer_many("digits", [image, image])


def files(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """The pair as two files."""
    found = secret(folder, pair)
    return found / "tls.crt", found / "tls.key"


async def test_a_group_is_reconstructed_over_tls(locks: Locks, tmp_path: Path) -> None:
    async with (
        encoder(locks.folders["encoder"]) as (encodes, encoder_admin),
        decoder(locks.folders["decoder"]) as (decodes, decoder_admin),
        cluster(
            tmp_path,
            PARITY,
            fakes=[locks.worker() for _ in range(5)],
            encoders=encodes,
            decoders=decodes,
            tls_dir=locks.folders["frontend"],
        ) as served,
        Load(served.address, clients=2) as load,
    ):
        while "reconstructed" not in load.sources:
            await stick(served, load)
        assert load.errors == []
        assert load.right
        for name, port in (("encoder", encoder_admin), ("decoder", decoder_admin)):
            page = replace(served, admin_port=port)
            assert await page.metric(f"proa_{name}_calls_total", status="OK") > 0
            assert await page.metric("proa_tls_certificate_expiry_seconds") > time.time()


async def stick(served: Cluster, load: Load) -> None:
    """Have workers stuck, one after the other, while others answer."""
    for worker in served.workers[:2]:
        worker.pause()
        await load.more(10)
        worker.resume()


async def test_workers_of_another_ca_are_not_used(locks: Locks, tmp_path: Path) -> None:
    stranger = Locks(tmp_path / "stranger").worker()
    async with cluster(
        tmp_path, fakes=[locks.worker(), stranger], up=1, tls_dir=locks.folders["frontend"]
    ) as served:
        states = {worker.state for worker in (await served.status()).workers}
        assert "up" in states
        why = "starting: worker w1: TLS: its certificate is not of a CA that we believe"
        await until(lambda: has_state(served, why))
        await infer(served.address, None)


async def has_state(served: Frontend, state: str) -> bool:
    return state in {worker.state for worker in (await served.status()).workers}


async def test_tls_towards_clients(locks: Locks, tmp_path: Path, ca: Path) -> None:
    folder = secret(tmp_path / "public", SERVER)
    async with front(tmp_path, locks, client_tls_dir=folder) as served:
        good = Tls(ca=ca, server_name="proa.example.com")
        await infer(served.address, good)
        await infer(served.address, Tls(ca=ca))  # the certificate is for 127.0.0.1 too
        await asyncio.to_thread(infer_sync, served.address, good)
        for tls, why in (
            (None, "it hung up at once: it may want TLS"),
            (Tls(ca=ca, server_name="other.example.com"), "its certificate is for another name"),
            (Tls(), "its certificate is not of a CA that we believe"),
        ):
            with pytest.raises(Unavailable, match=why):
                await infer(served.address, tls)


async def test_clients_show_certificates_where_there_is_a_ca(
    locks: Locks, tmp_path: Path, ca: Path
) -> None:
    folder = secret(tmp_path / "public", SERVER, PUBLIC)
    async with front(tmp_path, locks, client_tls_dir=folder) as served:
        cert, key = files(tmp_path / "client", PUBLIC.issue("a client"))
        await infer(served.address, Tls(ca=ca, cert=cert, key=key))
        with pytest.raises(Unavailable, match="it may want TLS, or another client certificate"):
            await infer(served.address, Tls(ca=ca))


async def test_the_command_line(locks: Locks, tmp_path: Path, ca: Path, capsys: Any) -> None:
    folder = secret(tmp_path / "public", SERVER)
    async with front(tmp_path, locks, client_tls_dir=folder) as served:
        flags = ["--address", served.address, "--tls-ca", str(ca), "--json"]
        assert await asyncio.to_thread(main, ["infer", "digits", "--random", *flags]) == 0
        assert await asyncio.to_thread(main, ["status", *flags]) == 0
        assert await asyncio.to_thread(main, ["status", *flags, "--tls-server-name", "x"]) == 1
        assert "its certificate is for another name" in capsys.readouterr().err


async def test_a_renewed_certificate_is_shown_without_a_restart(
    locks: Locks, tmp_path: Path, ca: Path
) -> None:
    mounted = Secret(tmp_path / "public")
    mounted.put(SERVER)
    other = Authority("next CA")
    async with front(tmp_path, locks, client_tls_dir=mounted.folder) as served:
        await infer(served.address, Tls(ca=ca))
        mounted.put(other.issue("proa.example.com"))

        async def refused() -> bool:
            try:
                await infer(served.address, Tls(ca=ca))
            except Unavailable as exc:
                assert "not of a CA that we believe" in str(exc)  # noqa: PT017
                return True
            return False

        await until(refused)


async def test_in_the_clear_towards_clients_is_said(
    locks: Locks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with front(tmp_path, locks) as served:
            await served.stub.ServerLive(service_pb2.ServerLiveRequest())
    assert "clients come without TLS, their tensors can be read on the way" in caplog.text


@pytest.mark.parametrize("setting", ["tls_dir", "client_tls_dir"])
async def test_a_frontend_does_not_start_with_an_expired_certificate(
    locks: Locks, tmp_path: Path, setting: str
) -> None:
    pair = locks.authority.issue("proa-frontend", ends=-HOUR)
    folder = secret(tmp_path / "old", pair, locks.authority)
    with pytest.raises(EnvironmentLacks, match=rf"PROA_FRONTEND_{setting.upper()}: .* expired on"):
        async with front(tmp_path, locks, **{setting: folder}):
            pass


def test_files_of_a_client(tmp_path: Path, ca: Path) -> None:
    cert, key = files(tmp_path / "one", PUBLIC.issue("one"))
    other, _ = files(tmp_path / "two", PUBLIC.issue("two"))
    for tls, why in (
        (Tls(ca=tmp_path / "none"), "tls: ca .*none: No such file"),
        (Tls(ca=key.with_name("..data")), "tls: ca .*: Is a directory"),
        (Tls(cert=cert), "tls: cert and key belong together"),
        (Tls(cert=cert, key=ca), "does not fit cert .*, or is not PEM"),
        (Tls(cert=other, key=key), "tls: key .* does not fit cert"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            Client("localhost:8001", tls=tls)
    assert str(key) not in repr(Tls(cert=cert, key=key))
