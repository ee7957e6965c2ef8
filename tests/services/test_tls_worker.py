"""A real Triton behind mutual TLS: who gets in, and how its certificate is renewed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fakes.eventually import eventually_sync
from fakes.pki import HOUR, Authority, Pair, Secret
from fakes.programs import INPUT, linear_model
from fakes.worker_process import WorkerProcess
from proa import rpc, wire
from proa.errors import Unavailable
from proa.worker.package import pack

pytestmark = pytest.mark.triton

CA = Authority("services CA")
FRONTEND = CA.issue("proa-frontend")


class TlsWorker:
    """A worker process and the secret it runs with."""

    def __init__(self, process: WorkerProcess, secret: Secret) -> None:
        self.process = process
        self.secret = secret

    @property
    def certificate(self) -> x509.Certificate:
        """What it shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.process.port), 5) as raw,
            context.wrap_socket(raw) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsWorker]:
    folder = tmp_path_factory.mktemp("worker")
    repository = pack(linear_model(folder), folder / "repo")
    secret = Secret(folder / "tls")
    secret.put(CA.issue("proa-worker"), CA)
    settings = {"TLS_DIR": str(secret.folder), "RESTART_SPREAD_S": "0.1", "DRAIN_S": "2"}
    with WorkerProcess(repository, folder, **settings) as process:
        yield TlsWorker(process, secret)


async def infer(worker: TlsWorker, pair: Pair | None, authority: Authority = CA) -> None:
    """One inference as a frontend with the certificate `pair`. Errors: of the tree."""
    keys = (pair.key, pair.certificate) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.certificate, *keys)
    tls = rpc.ChannelTls(credentials, rpc.peer_name(rpc.WORKER))
    await ask(worker, tls)


async def ask(worker: TlsWorker, tls: rpc.ChannelTls | None) -> None:
    image = np.zeros((1, *INPUT.shape), np.float32)
    request = wire.write_request("tiny", {"image": image}, outputs=["logits"])
    async with (
        rpc.connect(worker.process.address, message_bytes_max=1 << 20, tls=tls) as channel,
        rpc.peer_errors("worker"),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
        await stub.ModelInfer(request, timeout=20)


async def test_a_peer_of_our_ca_gets_in(worker: TlsWorker) -> None:
    await infer(worker, FRONTEND)


async def test_nobody_else_does(worker: TlsWorker) -> None:
    with pytest.raises(Unavailable, match=r"it hung up at once"):
        await infer(worker, Authority("foreign CA").issue("proa-frontend"))
    with pytest.raises(Unavailable, match=r"it hung up at once"):
        await infer(worker, None)
    with pytest.raises(Unavailable, match=r"it hung up at once"):
        await ask(worker, None)


def test_there_is_no_way_around(worker: TlsWorker) -> None:
    """HTTP has no TLS in Triton: it is off; the metrics stay."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", worker.process.http_port), 5)
    socket.create_connection(("127.0.0.1", worker.process.metrics_port), 5).close()


async def test_a_renewed_certificate_restarts_triton(worker: TlsWorker) -> None:
    (before,) = worker.process.processes("tritonserver")
    renewed = CA.issue("proa-worker")
    worker.secret.put(renewed, CA)
    wanted = x509.load_pem_x509_certificate(renewed.certificate)
    eventually_sync(lambda: not worker.process.ready(), timeout_s=20)
    assert worker.process.page("readyz") == (503, "draining\n")
    await infer(worker, FRONTEND)  # unready, but it serves on
    assert worker.process.processes("tritonserver") == [before]

    def answers() -> bool:
        return worker.process.processes("tritonserver") != [before] and worker.process.ready()

    eventually_sync(answers, timeout_s=60)
    assert worker.certificate == wanted
    await infer(worker, FRONTEND)
    log = worker.process.log.read_text()
    assert "waiting for our turn to restart Triton" in log
    assert "Traceback" not in log


def test_an_expired_certificate_is_named_at_the_start(tmp_path: Path) -> None:
    repository = pack(linear_model(tmp_path), tmp_path / "repo")
    secret = Secret(tmp_path / "tls")
    secret.put(CA.issue("proa-worker", ends=-HOUR), CA)
    process = WorkerProcess(repository, tmp_path, TLS_DIR=str(secret.folder)).start()
    assert process.process is not None
    assert process.process.wait(30) == 1
    assert "tls.crt expired on 20" in process.log.read_text()
