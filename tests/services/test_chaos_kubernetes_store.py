"""Experiments on the store of a release: a fake API server, agents that take faults in-band."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from fakes.kube_fake import FakeKube, Object, fake_kube, kubeconfig, pod
from fakes.locked import Locks
from fakes.pki import Secret
from fakes.real_store import Watch, started
from fakes.release import JOB
from proa.api.v1 import faults_pb2
from proa.api.v1.store_pb2 import ShardReport, StoreReport
from proa.cluster.api import ApiAccess
from proa.cluster.connection import Connection
from proa.errors import EnvironmentLacks, InvalidRequest, NotSupported, SettingsError, Unavailable
from proa.local.store import StoreOptions, agent_name, server_name
from proa.runtime.faults import FaultTable, add_faults
from proa.runtime.tls import TlsFiles
from proa_chaos.experiment import (
    EMBEDDING,
    Choice,
    Experiment,
    Fault,
    Parameters,
    Probe,
    Selector,
    StoreLoad,
    Workload,
)
from proa_chaos.inband import InBand
from proa_chaos.kubernetes.doors import Doors
from proa_chaos.kubernetes.faults import Ways
from proa_chaos.kubernetes.main import run_in_cluster
from proa_chaos.kubernetes.mesh import Mesh
from proa_chaos.kubernetes.nodes import Nodes
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.kubernetes.settings import ChaosSettings
from proa_chaos.kubernetes.store import ROLES, KubernetesStore
from proa_chaos.plan import Hit
from proa_chaos.result import Verdict
from proa_chaos.selection import Target

SHARDS = 3
REPORT = StoreReport(
    k=2, r=1, shards=[ShardReport(shard=n, domain=f"r-store-{n}") for n in range(SHARDS)]
)


class Acts:
    """An agent's faults; `seen`: what it was told to do."""

    kinds = frozenset({faults_pb2.BITFLIP, faults_pb2.STALE_DISK})

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool]] = []

    async def begin(self, fault: faults_pb2.Fault) -> None:
        self.seen.append((fault.kind, fault.site, True))

    def ended(self, fault: faults_pb2.Fault) -> None:
        self.seen.append((fault.kind, fault.site, False))


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[FakeKube, ApiAccess, Acts]]:
    """Pods of three shards, of which 1 has an agent that takes faults, and two coordinators."""
    acts = Acts()
    server = grpc.aio.server()
    add_faults(server, FaultTable(acts))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with fake_kube() as kube:
            for number in range(SHARDS):
                at = port if number == 1 else 1
                kube.put(pod(f"r-store-{number}", at, role="shard", node=f"node-{number}"))
            for name in ("a", "b"):
                kube.put(pod(f"r-coordinator-{name}", 1, role="store-coordinator"))
            kube.put(pod("w0", 1, role="worker"))
            kube.put(JOB)
            yield kube, kubeconfig(folder, str(kube.url)), acts
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def store_of(access: ApiAccess) -> AsyncIterator[KubernetesStore]:
    async with Connection(access) as connection:
        listed = Pods(connection, "models", "r", ROLES)
        mesh = Mesh(connection, "models", "chaos-1")
        ways = Ways(listed, Removal(listed, Nodes(connection, "chaos-1")), mesh, "chaos-1")
        found = KubernetesStore(ways, Doors(None, None, None), "127.0.0.1:1", seed=0)
        yield found
        await found.close()


def hit(target: Target, action: str, at_s: float = 0.0, **parameters: Any) -> Hit:
    fault = Fault("f", action, Choice(), parameters=Parameters(**parameters))
    return Hit(f"0.{at_s}", fault, target, at_s, at_s + 1)


async def test_a_target_for_each_shard_and_each_coordinator(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, access, _), store_of(access) as store:
        report = StoreReport()
        report.CopyFrom(REPORT)
        report.shards[2].domain = "rack-2"
        found = await store.targets(report)
        assert [(one.name, one.role, one.domain, one.node) for one in found] == [
            ("r-store-0", "shard", "r-store-0", "node-0"),
            ("r-store-1", "shard", "r-store-1", "node-1"),
            ("r-store-2", "shard", "rack-2", "node-2"),
            ("r-coordinator-a", "store-coordinator", "r-coordinator-a", "n1"),
            ("r-coordinator-b", "store-coordinator", "r-coordinator-b", "n1"),
        ]
        assert found[0].namespace == "models"


async def test_who_is_away_is_waited_for(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (kube, access, _), store_of(access) as store:
        await store.targets(REPORT)
        assert await store.waiting_for() == []
        kube.delete("pods", "r-store-1")
        kube.put(pod("r-store-2", 1, role="shard", ready=False))
        assert await store.waiting_for() == [
            "r-store-2 is not ready: NotYet", "1 of 3 pods of shard are ready",
        ]  # fmt: skip
        kube.denied.add(("list", "pods"))
        (why,) = await store.waiting_for()
        assert "may not list pods" in why
        kube.denied.clear()
        with pytest.raises(Unavailable, match="no pods of the shards 1"):
            await store.targets(REPORT)


async def test_a_shard_dies_as_its_pod_again_and_again(tmp_path: Path) -> None:
    """A stateful set gives the name to the next pod: the second kill is of that one."""
    async with cluster(tmp_path) as (kube, access, _), store_of(access) as store:
        deleted: list[str] = []

        def replaced(item: Object) -> None:
            deleted.append(item["metadata"]["uid"])
            kube.put(pod("r-store-1", 1, role="shard"))

        kube.on_delete = replaced
        target = (await store.targets(REPORT))[1]
        hits = [hit(target, "kill-shard"), hit(target, "kill-shard", at_s=5.0)]
        await store.prepare(hits)
        for one in hits:
            await store.inject(one, 0.0)
            await store.end(one)
        assert len(set(deleted)) == 2
        with pytest.raises(NotSupported, match="a pod is killed whole"):
            await store.prepare([hit(target, "kill-shard", what="server")])


async def test_bits_and_an_old_disk_are_the_agent_s(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, access, acts), store_of(access) as store:
        targets = await store.targets(REPORT)
        hits = [
            hit(targets[1], "bitflip", site=EMBEDDING, bits=3),
            hit(targets[1], "stale-disk", at_s=3.0),
        ]
        await store.prepare(hits)
        for one in hits:
            await store.inject(one, 60.0)
            await store.end(one)
        kinds = faults_pb2.BITFLIP, faults_pb2.STALE_DISK
        sites = faults_pb2.EMBEDDING, faults_pb2.OUTPUT
        assert acts.seen == [
            (kind, site, began)
            for kind, site in zip(kinds, sites, strict=True)
            for began in (True, False)
        ]


async def test_agents_with_mutual_tls_let_the_runner_in(tmp_path: Path) -> None:
    locks, store = Locks(tmp_path), Secret(tmp_path / "store")
    store.put(locks.authority.issue("proa-store"), locks.authority)
    server = grpc.aio.server()
    add_faults(server, FaultTable(Acts()))
    port = server.add_secure_port(
        "127.0.0.1:0", TlsFiles(store.folder, "PROA_STORE_TLS_DIR", "store").server()
    )
    await server.start()
    target = Target("r-store-0", "d", f"127.0.0.1:{port}", labels={"proa.dev/role": "shard"})
    for folder in (locks.folders["frontend"], None):
        doors = Doors(folder, None, None)
        with contextlib.nullcontext() if folder else pytest.raises(Unavailable):
            assert await InBand(doors, "x", 0).active(target) == []
        await doors.close()
    await server.stop(None)


async def test_what_nobody_can_act_out_is_refused_before(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, access, _), store_of(access) as store:
        targets = await store.targets(REPORT)
        with pytest.raises(NotSupported, match="takes kill"):
            await store.prepare([hit(targets[3], "slow", delay_ms=5)])
        with pytest.raises(NotSupported, match="cannot be frozen"):
            await store.prepare([hit(targets[1], "pause", how="process")])
        with pytest.raises(Unavailable):
            await store.prepare([hit(targets[0], "stale-disk")])


def experiment(*faults: Fault, during_s: float = 1.5) -> Experiment:
    probes = [Probe(name, at_most=0, phase="all") for name in ("failed", "wrong", "lost")]
    load = StoreLoad(rows=400, dim=4, batch=32)
    workload = Workload(
        before_s=0.5, during_s=during_s, after_s=0.5, recovery_s=60, deadline_ms=60_000, store=load
    )
    return Experiment("one", "t", "d", tuple(probes), faults, workload=workload)


def on_shards(action: str, **more: Any) -> Fault:
    return Fault(action, action, Choice(Selector(labels={"proa.dev/role": "shard"})), **more)


async def test_it_takes_the_coordinators_address(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, access, _):
        settings = ChaosSettings(Path("-"), "r", "127.0.0.1:1", job="one", pod="one-x")
        one = experiment(on_shards("kill-shard", duration_s=0.0))
        with pytest.raises(SettingsError, match="PROA_CHAOS_STORE"):
            await run_in_cluster(one, settings, access)
        with pytest.raises(InvalidRequest, match="not for an experiment on a store"):
            await run_in_cluster(one, replace(settings, model="m"), access)
    locked = replace(settings, reader_user="reader", reader_password_file=tmp_path / "none")
    with pytest.raises(EnvironmentLacks, match="PROA_CHAOS_READER_PASSWORD_FILE"):
        assert locked.access


@pytest.mark.long
async def test_whole_runs_on_a_real_store(tmp_path: Path) -> None:
    """A killed pod takes agent and server with it; the other faults are the agents' own."""
    with tempfile.TemporaryDirectory() as short:
        options = StoreOptions(Path(short), 0, 0, faults=True)
        async with started(options) as store, cluster(tmp_path) as (kube, access, _):
            settings = ChaosSettings(
                Path("-"), "r", "127.0.0.1:1", store=store.address, job="one", pod="one-x"
            )
            put_shards(kube, store)
            flips = on_shards("bitflip", parameters=Parameters(site=EMBEDDING, bits=9))
            for fault in (
                on_shards("kill-shard", duration_s=0.0),
                on_shards("stale-disk", duration_s=1.0),
                flips,
            ):
                result = await run_in_cluster(experiment(fault), settings, access)
                assert (result.verdict, result.fail_step) == (Verdict.PASS, ""), fault.name


def put_shards(kube: FakeKube, store: Watch) -> None:
    """Pods of its shards, that are killed and come back as their processes do."""
    ports = {spec.name: spec.port for spec in store.running.topology.processes}

    def put(number: int) -> None:
        kube.put(pod(f"r-store-{number}", ports[agent_name(number)], role="shard"))

    def killed(item: Object) -> None:
        number = int(item["metadata"]["name"].rpartition("-")[2])
        for name in (agent_name(number), server_name(number)):
            store.supervisor.kill(name)
        asyncio.get_running_loop().call_later(1.0, put, number)

    kube.on_delete = killed
    for number in range(len(store.running.topology.directories)):
        put(number)
