"""Experiments on a release: a fake API server, a real frontend and decoder, fake workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import until
from fakes.eventually import eventually
from fakes.kube_fake import refusal
from fakes.release import Release, release
from proa.api.v1 import faults_pb2
from proa.cluster import LeaseTimes
from proa.cluster.connection import Connection
from proa.errors import EnvironmentLacks, InvalidRequest, NotSupported, Unavailable
from proa_chaos.experiment import Choice, Experiment, Fault, Parameters, Probe, Selector, Workload
from proa_chaos.inband import InBand
from proa_chaos.kubernetes.backend import KubernetesBackend
from proa_chaos.kubernetes.doors import Doors
from proa_chaos.kubernetes.faults import Ways
from proa_chaos.kubernetes.main import run_in_cluster
from proa_chaos.kubernetes.mesh import Mesh
from proa_chaos.kubernetes.nodes import Nodes
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.plan import Hit
from proa_chaos.result import Verdict
from proa_chaos.selection import Target

DURING_S = 1.5
# A holder keeps it on a machine that is busy; who waits for it gives up after a second.
FAST = LeaseTimes(duration_s=30, renew_s=0.3, poll_s=0.1)
IMPATIENT = LeaseTimes(duration_s=1, renew_s=0.3, poll_s=0.1)


def select(role: str, **more: Any) -> Choice:
    return Choice(Selector(labels={"proa.dev/role": role}), **more)


def experiment(*faults: Fault, **probe: Any) -> Experiment:
    limit = {"measure": "failed", "at_most": 0, "phase": "all", **probe}
    workload = Workload(rate_hz=40, before_s=0.5, during_s=DURING_S, after_s=0.5, recovery_s=10)
    return Experiment("one", "t", "d", (Probe(**limit),), faults, workload=workload)


def kill(**more: Any) -> Fault:
    return Fault("k", "kill", select("worker"), duration_s=0.0, **more)


async def test_a_pod_is_killed_and_the_verdict_is_announced(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        deleted = there.replacing()
        result = await run_in_cluster(experiment(kill()), there.settings(), there.access)
        assert (result.verdict, result.fail_step) == (Verdict.PASS, "")
        assert result.backend == "kubernetes"
        assert deleted == [result.done[0].hit.target.name]
        assert there.events() == [
            ("ChaosStarted", "experiment one, seed 0"),
            ("ChaosPass", "experiment one: Pass."),
        ]
        assert there.notes()["proa.dev/chaos-verdict"] == "Pass"
        (lease,) = [o for (kind, _), o in there.kube.objects.items() if kind == "leases"]
        assert lease["metadata"]["name"] == "r-chaos"
        assert "holderIdentity" not in lease["spec"]


async def test_a_kill_that_lasts_kills_what_replaces_it(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        deleted = there.replacing()
        lasting = replace(kill(), duration_s=1.2)
        result = await run_in_cluster(
            experiment(lasting, at_most=1000), there.settings(), there.access
        )
        assert result.verdict is Verdict.PASS
        assert len(deleted) >= 2
        assert deleted[1:] == [f"new-{i + 1}" for i in range(len(deleted) - 1)]


async def test_a_false_hypothesis_fails_and_the_job_says_why(tmp_path: Path) -> None:
    async with release(tmp_path, faults=True) as there:
        slow = Fault("s", "slow", select("decoder"), parameters=Parameters(delay_ms=20))
        wrong = experiment(slow, measure="sent", at_most=1)
        result = await run_in_cluster(wrong, there.settings(), there.access)
        assert result.verdict is Verdict.FAIL
        reason, message = there.events()[-1]
        assert reason == "ChaosFail"
        assert "sent at most 1" in message
        assert "sent at most 1" in there.notes()["proa.dev/chaos-fail-step"]
        doors = Doors(None, None, None)
        (window,) = (await doors.report(there.served.address)).faults
        assert (window.action, window.target) == ("slow", "decoder")  # who watches has seen it
        assert window.end_unix_ms - window.begin_unix_ms > 1000 * DURING_S / 2
        await doors.close()


async def test_an_eviction_asks_the_budgets(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        deleted = there.replacing()
        evict = kill(parameters=Parameters(how="evict"))
        result = await run_in_cluster(experiment(evict), there.settings(), there.access)
        assert result.verdict is Verdict.PASS
        assert len(deleted) == 1
        there.kube.budgets = set(there.workers)
        result = await run_in_cluster(experiment(evict), there.settings(), there.access)
        assert result.verdict is Verdict.STOPPED
        assert "disruption budget" in result.fail_step
        assert len(deleted) == 1


async def test_what_a_role_does_not_grant_is_named(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        there.kube.denied.add(("delete", "pods"))
        result = await run_in_cluster(experiment(kill()), there.settings(), there.access)
        assert result.verdict is Verdict.STOPPED
        assert "may not delete pods (API group core) in namespace models" in result.fail_step
        there.kube.denied = {("list", "pods")}
        with pytest.raises(Unavailable, match=r"may not list pods .*a Role must grant it"):
            await run_in_cluster(experiment(kill()), there.settings(), there.access)
        assert there.events()[-1][0] == "ChaosRefused"


async def test_without_a_right_to_announce_the_experiment_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with release(tmp_path) as there:
        there.replacing()
        there.kube.denied = {("create", "events"), ("get", "jobs"), ("patch", "jobs")}
        result = await run_in_cluster(experiment(kill()), there.settings(), there.access)
        assert result.verdict is Verdict.PASS
        assert "may not create events" in caplog.text


async def test_one_experiment_at_a_time(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        there.replacing()
        long = experiment(kill())
        long = replace(long, workload=replace(long.workload, during_s=4.0))
        first = asyncio.create_task(
            run_in_cluster(long, there.settings(), there.access, times=FAST)
        )
        await eventually(lambda: ("leases", "r-chaos") in there.kube.objects)
        with pytest.raises(Unavailable, match=r"another experiment runs.*one-x"):
            await run_in_cluster(
                experiment(kill()), there.settings(pod="two-y"), there.access, times=IMPATIENT
            )
        assert (await first).verdict is Verdict.PASS


async def test_a_run_that_loses_its_lease_rolls_back_and_stops(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        slow = Fault("s", "slow", select("decoder"), parameters=Parameters(delay_ms=20))
        long = experiment(slow)
        long = replace(long, workload=replace(long.workload, during_s=60.0))
        running = asyncio.create_task(
            run_in_cluster(long, there.settings(), there.access, times=FAST)
        )
        doors = Doors(None, None, None)
        address = there.kube.objects["pods", "decoder"]["spec"]["containers"][0]["ports"][1]
        decoder = Target("decoder", "d", f"127.0.0.1:{address['containerPort']}")
        decoder = replace(decoder, labels={"proa.dev/role": "decoder"})
        in_band = InBand(doors, "x", 0)

        async def acts() -> bool:
            return bool(await in_band.active(decoder))

        await until(acts, timeout_s=30.0)
        taken = there.kube.objects["leases", "r-chaos"]
        there.kube.put({**taken, "spec": {**taken["spec"], "holderIdentity": "another"}})
        result = await running
        assert result.verdict is Verdict.STOPPED
        assert result.fail_step.startswith("the Lease r-chaos was lost (another holder")
        assert [done.end_error for done in result.done] == [""]
        assert not await acts()
        await doors.close()
        assert there.events()[-1][0] == "ChaosStopped"
        assert there.notes()["proa.dev/chaos-verdict"] == "Stopped"
        kept = there.kube.objects["leases", "r-chaos"]["spec"]
        assert kept["holderIdentity"] == "another", "it is not ours to release"


async def test_a_runner_that_died_does_not_lock_the_next_one_out(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        there.replacing()
        spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1}
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        there.kube.put({**kind, "metadata": {"name": "r-chaos"}, "spec": spec})
        one = experiment(kill())
        result = await run_in_cluster(one, there.settings(), there.access, times=FAST)
        assert result.verdict is Verdict.PASS


async def test_the_guard_counts_failure_domains(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        both = Fault("k", "kill", select("worker", mode="fixed", value=2), duration_s=0.0)
        with pytest.raises(InvalidRequest, match="2 failure domains of the workers"):
            await run_in_cluster(experiment(both), there.settings(), there.access)
        assert there.kube.count("delete") == 0


async def test_a_release_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        other = replace(there.settings(), instance="other")
        with pytest.raises(InvalidRequest, match=r"has no pods with .*instance=other"):
            await run_in_cluster(experiment(kill()), other, there.access)


async def backend(there: Release, connection: Connection, **more: Any) -> KubernetesBackend:
    pods, doors = Pods(connection, "models", "r"), Doors(None, None, None)
    mesh = Mesh(connection, "models", "chaos-1")
    ways = Ways(pods, Removal(pods, Nodes(connection, "chaos-1")), mesh, "chaos-1")
    found = KubernetesBackend(ways, doors, there.served.address, seed=0, **more)

    async def ready() -> bool:
        return not await found.waiting_for("digits")

    await until(ready)
    return found


def hit(target: Target, action: str, **parameters: Any) -> Hit:
    return Hit(
        "0.0", Fault("f", action, Choice(), parameters=Parameters(**parameters)), target, 0, 1
    )


async def test_targets_are_pods_with_nodes_and_labels(tmp_path: Path) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        found = await backend(there, connection)
        by_name = {target.name: target for target in await found.targets("digits")}
        assert sorted(by_name) == ["decoder", "frontend", "w0", "w1", "w2", "w3"]
        assert by_name["w1"].address == there.workers["w1"].address
        assert (by_name["w1"].domain, by_name["w1"].node) == ("node-of-w1", "node-of-w1")
        assert (by_name["w1"].role, by_name["w1"].model) == ("worker", "digits")
        assert by_name["w1"].namespace == "models"
        assert by_name["w1"].protection == "none"
        await found.close()


async def test_the_frontend_tells_of_protection_and_quarantine(tmp_path: Path) -> None:
    protection = "mode: correct, quarantineAfter: 1"
    async with (
        release(tmp_path, protection=protection) as there,
        Connection(there.access) as connection,
    ):
        found = await backend(there, connection)
        by_name = {target.name: target for target in await found.targets("digits")}
        assert by_name["w1"].protection == "correct"
        assert by_name["frontend"].protection == "none"
        assert await found.quarantined("digits") == []
        there.workers["w1"].verdict = (24, 1, 1, 0, 9.0, 1, 0, 3)  # repaired, says its canary

        async def out() -> bool:
            return bool(await found.quarantined("digits"))

        await until(out)
        (line,) = await found.quarantined("digits")
        assert line.startswith("worker w1 is quarantined: 1 fault")
        there.workers["w1"].verdict = (24, 0, 0, 0, 0.2, 1, -1, -1)
        assert any(one.startswith("worker w1 is quar") for one in await found.waiting_for("digits"))
        await found.close()


async def test_a_pod_that_is_missing_or_not_ready_is_waited_for(tmp_path: Path) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        found = await backend(there, connection)
        await found.targets("digits")
        there.kube.delete("pods", "w3")
        assert "3 of 4 pods of worker digits are ready" in await found.waiting_for("digits")
        there.kube.instead["list"] = [refusal(500, "down for a moment")]
        (why,) = await found.waiting_for("digits")
        assert "500" in why
        await found.close()


async def test_faults_of_another_run_are_not_mixed_with(tmp_path: Path) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        found = await backend(there, connection)
        (decoder,) = [t for t in await found.targets("digits") if t.role == "decoder"]
        doors = Doors(None, None, None)
        await InBand(doors, "theirs", 0).inject(hit(decoder, "error"), 60.0)
        with pytest.raises(Unavailable, match=r"decoder is under faults of another run: theirs"):
            await found.prepare([hit(decoder, "slow", delay_ms=5)])
        await doors.close()
        await found.close()


async def test_a_fault_has_its_time_to_live_where_it_acts(tmp_path: Path) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        found = await backend(there, connection)
        (decoder,) = [t for t in await found.targets("digits") if t.role == "decoder"]
        slow = hit(decoder, "slow", delay_ms=5)
        await found.prepare([slow])
        await found.inject(slow, 42.0)
        doors = Doors(None, None, None)
        (active,) = await InBand(doors, "x", 0).active(decoder)
        assert (active.kind, active.ttl_ms) == (faults_pb2.DELAY, 42_000)
        await found.end(slow)
        assert await InBand(doors, "x", 0).active(decoder) == []
        await doors.close()
        await found.close()


async def test_what_a_cluster_cannot_do_is_refused_before_anything_is(tmp_path: Path) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        found = await backend(there, connection)
        worker = next(t for t in await found.targets("digits") if t.role == "worker")
        for action, parameters in (("pause", {"how": "process"}), ("cpu-hog", {})):
            with pytest.raises(NotSupported):
                await found.prepare([hit(worker, action, **parameters)])
        with pytest.raises(EnvironmentLacks, match=r"chaos\.enabled"):
            await found.prepare([hit(worker, "slow", delay_ms=5)])
        await found.close()
