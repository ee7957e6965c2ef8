"""What operators see of a frontend: Status, health, reflection, readiness, metrics."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2

from fakes.cluster import Load, cluster, request, until
from fakes.collector import dead_endpoint
from fakes.triton_fake import FakeTriton
from proa import rpc
from proa.api.v1 import frontend_pb2, frontend_pb2_grpc
from proa.errors import DeadlinePassed, InvalidRequest, Overloaded, Unavailable

ROOT = Path(__file__).parents[2]


async def test_status_tells_what_the_frontend_sees(tmp_path):
    text = "policy: parity, groupMsMax: 1, idleReserve: 0, qualitySample: 1"
    async with cluster(tmp_path, text, workers=3) as served:
        async with Load(served.address, clients=2) as load:
            await load.more(40)
        await until(lambda: has_agreement(served))
        status = await served.status()
    assert (status.name, status.mode, status.package) == ("digits", "enforce", "fa4e")
    assert (status.policy, status.policy_in_force) == ("parity", "parity+retry")
    assert status.why == "as configured"
    assert status.sent >= sum(status.answers.values()) >= 40
    assert set(status.answers) <= {"worker", "retry", "reconstructed"}
    assert status.redundant_sent > 0
    assert status.groups["done"] > 0
    assert 0 < status.p50_ms <= status.p95_ms <= status.p99_ms <= status.p999_ms
    assert status.agreement == 1.0
    assert [w.name for w in status.workers] == ["w0", "w1", "w2"]
    for worker in status.workers:
        assert (worker.domain, worker.state, worker.errors) == (worker.name, "up", 0)
        assert list(worker.roles) == ["deployed", "parity"]
        assert worker.answered > 0
        assert worker.latency_ms > 0
        assert worker.inflight == 0


async def has_agreement(served):
    return (await served.status()).agreement_samples > 0


async def test_status_streams_on_and_keeps_its_limits(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, watchers_max=1) as served:
        stub = frontend_pb2_grpc.FrontendStub(served.channel)
        watch = stub.Status(frontend_pb2.StatusRequest(interval_ms=100))
        first, second = await watch.read(), await watch.read()
        assert second.unix_ms >= first.unix_ms + 90
        with pytest.raises(Overloaded, match="1 watchers, which is the limit"):
            await read(stub.Status(frontend_pb2.StatusRequest()))
        with pytest.raises(InvalidRequest, match="interval_ms is 99; the limits are 100 to 60000"):
            await read(stub.Status(frontend_pb2.StatusRequest(interval_ms=99)))
        watch.cancel()
        await until(lambda: can_watch(stub))


async def read(call):
    async with rpc.peer_errors("frontend"):
        return await call.read()


async def can_watch(stub):
    call = stub.Status(frontend_pb2.StatusRequest())
    try:
        return await read(call)
    except Overloaded:
        return None
    finally:
        call.cancel()


async def health(served):
    stub = health_pb2_grpc.HealthStub(served.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest())
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


async def test_health_and_readyz_follow_the_workers(tmp_path):
    worker = FakeTriton(programs=())
    async with cluster(tmp_path, fakes=[worker], up=0, canary_s=0.05) as served:
        assert await health(served) == "NOT_SERVING"
        assert (await served.page("/readyz"))[0] == 503
        assert (await served.page("/livez"))[0] == 200
        assert "nothing that it is configured for" in (await served.status()).workers[0].state
        assert not (await served.stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        worker.programs = ("deployed", "parity.0")
        await until(lambda: is_health(served, "SERVING"))
        assert await served.page("/readyz") == (200, "ok\n")
        await worker.stop()
        with pytest.raises((Unavailable, DeadlinePassed)):
            await served.infer(request(timeout=100_000))
        await until(lambda: is_health(served, "NOT_SERVING"))
        assert (await served.page("/readyz"))[0] == 503


async def is_health(served, wanted):
    return await health(served) == wanted


async def test_reflection_names_the_services(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:

        def names():
            with grpc.insecure_channel(served.address) as channel:
                return set(ProtoReflectionDescriptorDatabase(channel).get_services())

        assert await asyncio.to_thread(names) >= {
            "inference.GRPCInferenceService",
            "proa.api.v1.Frontend",
            "grpc.health.v1.Health",
        }


def documented():
    """The frontend's metrics as docs/operations.md names them."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `(proa_\w+)` \|", text, re.MULTILINE)
    return {n for n in names if not re.match(r"proa_(worker|encoder|decoder|store)_", n)}


async def test_every_documented_metric_is_exported(tmp_path, monkeypatch):
    text = "policy: auto, qualitySample: 1, groupMsMax: 1"
    with dead_endpoint() as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        async with cluster(tmp_path, text, workers=3) as served:
            async with Load(served.address) as load:
                await load.more(10)
            _, page = await served.page("/metrics")
    exported = set(re.findall(r"^# TYPE (proa_\w+) ", page, re.MULTILINE))
    assert documented()
    assert documented() - exported == set()
