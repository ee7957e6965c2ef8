"""Mutual TLS between our services over real gRPC: who is refused is told why, and at once."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from fakes.cluster import until
from fakes.locked import MIB, Locks, encoder
from fakes.pki import DAY, HOUR, Authority, Pair, Secret, secret
from fakes.triton_fake import images, linear
from proa import rpc, wire
from proa.api.v1 import encoder_pb2, encoder_pb2_grpc, faults_pb2, faults_pb2_grpc, tensor_pb2
from proa.errors import EnvironmentLacks, Unavailable
from proa.runtime.faults import FaultService, FaultTable

TIMEOUT_S = 20.0
AT_ONCE_S = 1.0


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path)


async def ask(channel: grpc.aio.Channel) -> None:
    """Any call. Errors: of the tree."""
    stub = faults_pb2_grpc.FaultInjectorStub(channel)  # type: ignore[no-untyped-call]
    async with rpc.peer_errors("encoder"):
        await stub.List(faults_pb2.ListRequest(), timeout=TIMEOUT_S)


def tls_of(pair: Pair | None, authority: Authority, role: str = rpc.ENCODER) -> rpc.ChannelTls:
    keys = (pair.key, pair.certificate) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.certificate, *keys)
    return rpc.ChannelTls(credentials, rpc.peer_name(role))


@contextlib.asynccontextmanager
async def bare_server(pair: Pair | None, authority: Authority) -> AsyncIterator[str]:
    """A server with any certificate, or none; what TlsFiles would refuse to start with, too."""
    server = grpc.aio.server()
    table = FaultTable()
    faults_pb2_grpc.add_FaultInjectorServicer_to_server(  # type: ignore[no-untyped-call]
        FaultService(table), server
    )
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        keys = [(pair.key, pair.certificate)]
        credentials = grpc.ssl_server_credentials(keys, authority.certificate, True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def refused(address: str, tls: rpc.ChannelTls | None) -> str:
    """What a caller is told, within a second."""
    started = time.monotonic()
    async with rpc.connect(address, message_bytes_max=MIB, tls=tls) as channel:
        with pytest.raises(Unavailable) as caught:
            await ask(channel)
    assert time.monotonic() - started < AT_ONCE_S
    return str(caught.value)


async def test_a_parity_query_through_encoder_and_worker(locks: Locks) -> None:
    channels = locks.channels()
    async with locks.worker() as worker, encoder(locks.folders["encoder"]) as (address, _):
        request = encoder_pb2.InferParityRequest(
            model="digits",
            code=tensor_pb2.Code(coder="sum", k=2, r=1),
            members=[encoder_pb2.Query(inputs=[wire.to_tensor("image", x)]) for x in images(2)],
            outputs=["logits"],
            worker=worker.address,
        )
        stub = encoder_pb2_grpc.EncoderStub(channels(address, rpc.ENCODER))  # type: ignore[no-untyped-call]
        async with rpc.peer_errors("encoder"):
            answer = await stub.InferParity(request, timeout=TIMEOUT_S)
    found = wire.from_tensors(answer.outputs, "answer")["logits"]
    assert abs(found - linear(sum(images(2)))).max() < 1e-3
    await channels.close()


@pytest.mark.parametrize(
    ("starts", "ends", "why"),
    [
        (-2 * DAY, -HOUR, "encoder: TLS: its certificate has expired"),
        (HOUR, DAY, "encoder: TLS: its certificate is not yet valid"),
    ],
)
async def test_a_server_out_of_its_time(
    locks: Locks, starts: dt.timedelta, ends: dt.timedelta, why: str
) -> None:
    """As it is when nobody renews the certificate of a running service."""
    pair = locks.authority.issue("proa-encoder", starts=starts, ends=ends)
    mine = locks.authority.issue("proa-frontend")
    async with bare_server(pair, locks.authority) as address:
        assert await refused(address, tls_of(mine, locks.authority)) == why


async def test_a_server_that_is_not_who_it_should_be(locks: Locks) -> None:
    mine = tls_of(locks.authority.issue("proa-frontend"), locks.authority)
    async with bare_server(Authority().issue("proa-encoder"), locks.authority) as address:
        found = await refused(address, mine)
        assert found == "encoder: TLS: its certificate is not of a CA that we believe"
    async with bare_server(locks.authority.issue("proa-worker"), locks.authority) as address:
        assert await refused(address, mine) == "encoder: TLS: its certificate is for another name"
    async with bare_server(None, locks.authority) as address:
        assert await refused(address, mine) == "encoder: TLS: it does not speak TLS"


async def test_a_client_that_may_not_come_in(locks: Locks) -> None:
    ours = locks.authority
    old = ours.issue("proa-frontend", starts=-2 * DAY, ends=-HOUR)
    async with encoder(locks.folders["encoder"]) as (address, _):
        for pair in (None, old, Authority().issue("proa-frontend")):
            assert "it hung up at once" in await refused(address, tls_of(pair, ours))
        assert "it hung up at once" in await refused(address, None)


async def test_a_renewal_while_serving(locks: Locks) -> None:
    """Both ends go over to another CA; calls under way and connections stay."""
    mounted = {role: Secret(path) for role, path in locks.folders.items()}
    files = locks.files(rpc.FRONTEND)
    channels = rpc.Channels(message_bytes_max=MIB, tls=files)
    async with encoder(locks.folders["encoder"]) as (address, _):
        before = channels(address, rpc.ENCODER)
        await ask(before)
        new = Authority("next CA")
        for role in ("encoder", "frontend"):
            mounted[role].put(new.issue(f"proa-{role}"), new)
        assert files.reload()
        after = channels(address, rpc.ENCODER)
        assert after is not before

        async def works() -> bool:
            try:
                await ask(channels(address, rpc.ENCODER))
            except Unavailable:
                return False
            return True

        await until(works)
        assert "it hung up at once" in await refused(
            address, tls_of(locks.authority.issue("proa-frontend"), new)
        )
    await channels.close()


async def test_a_service_does_not_start_with_an_expired_certificate(locks: Locks) -> None:
    pair = locks.authority.issue("proa-encoder", starts=-2 * DAY, ends=-HOUR)
    folder = secret(locks.folders["encoder"].parent / "old", pair, locks.authority)
    with pytest.raises(EnvironmentLacks, match=r"PROA_ENCODER_TLS_DIR: .*tls\.crt expired on"):
        async with encoder(folder):
            pass
