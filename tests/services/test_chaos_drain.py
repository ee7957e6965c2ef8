"""A drained node: on this machine a process that leaves in its own time, in a cluster evictions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.eventually import eventually
from fakes.kube_fake import fake_kube, kubeconfig
from fakes.release import Release, release
from proa.cluster.connection import ApiError, Connection
from proa.errors import InvalidRequest, Unavailable
from proa.local.run_file import FILE_NAME
from proa.local.session import start_ticks
from proa_chaos.experiment import Choice, Experiment, Fault, Parameters, Probe, Selector, Workload
from proa_chaos.kubernetes.main import run_in_cluster
from proa_chaos.kubernetes.nodes import ANNOTATION, Nodes
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.local.helper import Helper
from proa_chaos.plan import Hit
from proa_chaos.result import Verdict
from proa_chaos.selection import Target

# Says that it was told to leave, and leaves a moment later.
POLITE = """
import signal, sys, time
def leave(*_):
    print("leaving", flush=True)
    time.sleep(0.3)
    print("left", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("here", flush=True)
time.sleep(600)
"""
NODE = "node-of-w1"


@pytest.fixture
def polite() -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", POLITE]
    with subprocess.Popen(
        argv, start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


def write_run(folder: Path, pid: int | None) -> None:
    """The run file of a `proa up` that is this process, with one worker."""
    own = {"state": "ready", "restarts": 0, "address": "a:1", "admin_address": "a:2"}
    run = {
        "version": 1,
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "started_unix": 0.0,
        "address": "a:3",
        "admin_address": "a:4",
        "models": ["digits"],
        "processes": [{**own, "name": "worker-0", "pid": pid}],
    }
    (folder / FILE_NAME).write_text(json.dumps(run))


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def start() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a process as `proa up` does."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(SLEEPER, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


async def test_a_drained_process_ends_in_its_own_time_and_is_kept_down(
    polite: subprocess.Popen[str], start: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    write_run(tmp_path, polite.pid)
    helper = await Helper.start({"deed": "drain", "run_dir": str(tmp_path), "name": "worker-0"})
    await helper.go(600)
    out, _ = await asyncio.to_thread(polite.communicate)
    assert (out, polite.returncode) == ("leaving\nleft\n", 0)
    replacement = start()
    write_run(tmp_path, replacement.pid)
    assert await asyncio.to_thread(replacement.wait) == -signal.SIGKILL
    await helper.end()
    replacement = start()
    write_run(tmp_path, replacement.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        await asyncio.to_thread(replacement.wait, 0.3)


def experiment(*, during_s: float = 1.0, **parameters: Any) -> Experiment:
    """w1 is chosen, so its node is drained."""
    choice = Choice(Selector(pods={"models": ("w1",)}))
    drain = Fault("d", "drain", choice, parameters=Parameters(**parameters))
    workload = Workload(
        rate_hz=40, before_s=0.2, during_s=during_s, after_s=0.2, recovery_s=10, queries=8
    )
    nothing = Probe("failed", at_most=0, phase="all")
    return Experiment("one", "t", "d", (nothing,), (drain,), workload=workload)


def on_the_same_node(there: Release) -> None:
    """A worker of another model, and a pod of another release, are on the node of w1, too."""
    for name, labels in (
        ("other-model", {"proa.dev/model": "letters"}),
        ("other-release", {"app.kubernetes.io/instance": "s"}),
    ):
        item = dict(there.kube.objects["pods", "w1"])
        meta = {"name": name, "labels": {**item["metadata"]["labels"], **labels}}
        there.kube.put({**item, "metadata": meta})


def put_node(there: Release, **spec: Any) -> None:
    kind = {"apiVersion": "v1", "kind": "Node"}
    there.kube.put({**kind, "metadata": {"name": NODE}, "spec": spec})


def node(there: Release) -> tuple[bool, str | None]:
    """Whether it is cordoned, and what is noted of that."""
    found = there.kube.objects["nodes", NODE]
    notes = found["metadata"].get("annotations", {})
    return found["spec"].get("unschedulable", False), notes.get(ANNOTATION)


async def test_all_of_the_release_on_the_node_is_evicted_and_nobody_else(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        on_the_same_node(there)
        evicted: list[str] = []
        there.kube.on_delete = lambda item: evicted.append(item["metadata"]["name"])
        there.kube.denied = {("delete", "pods"), ("get", "nodes")}
        one = experiment()
        one = replace(one, workload=replace(one.workload, recovery_s=0.1))
        result = await run_in_cluster(one, there.settings(), there.access)
        assert sorted(evicted) == ["other-model", "w1"]
        assert "3 of 4 pods of worker digits are ready" in result.fail_step  # nobody replaced it
        assert [done.hit.target.name for done in result.done] == ["w1"]


async def test_what_a_budget_holds_back_is_asked_again(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        evicted = there.replacing()
        there.kube.budgets = {"w1"}
        running = asyncio.create_task(
            run_in_cluster(experiment(during_s=3.0), there.settings(), there.access)
        )
        await eventually(lambda: there.kube.count("create") > 5, timeout_s=30)  # refused by then
        assert evicted == []
        there.kube.budgets = set()
        result = await running
        assert (result.verdict, result.fail_step) == (Verdict.PASS, "")
        assert evicted == ["w1"]


async def test_what_a_budget_never_lets_go_stops_it_and_is_named(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        there.kube.budgets = {"w1"}
        result = await run_in_cluster(experiment(), there.settings(), there.access)
        assert result.verdict is Verdict.STOPPED
        assert "node node-of-w1: 1 pods were not let go within 1 s: w1" in result.fail_step
        assert "disruption budget" in result.fail_step


async def test_a_node_is_cordoned_and_uncordoned(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        put_node(there)
        there.replacing()
        running = asyncio.create_task(
            run_in_cluster(experiment(cordon=True), there.settings(), there.access)
        )
        await eventually(lambda: node(there)[0], timeout_s=30)
        note = json.loads(node(there)[1] or "")
        assert 0 < note["until"] - time.time() < 60
        assert (await running).verdict is Verdict.PASS
        assert node(there) == (False, None)


async def test_a_node_that_cannot_be_uncordoned_is_named(tmp_path: Path) -> None:
    async with fake_kube() as kube, Connection(kubeconfig(tmp_path, str(kube.url))) as connection:
        kube.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {}})
        labels = {"app.kubernetes.io/instance": "r", "proa.dev/role": "worker"}
        pod = {"name": "w1", "labels": labels}
        spec = {"nodeName": NODE, "containers": [{"name": "w", "image": "x"}]}
        kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": spec})
        removal = Removal(Pods(connection, "models", "r"), Nodes(connection, "ours"))
        (fault,) = experiment(cordon=True).faults
        hit = Hit("0", fault, Target("w1", NODE), 0.0, 60.0)
        await removal.check([hit])
        elsewhere = {"metadata": {**pod, "name": "w2"}, "spec": {**spec, "nodeName": "n2"}}
        kube.put({"apiVersion": "v1", "kind": "Pod", **elsewhere})
        await removal.drain(hit, 60.0)
        kube.denied = {("patch", "nodes")}
        with pytest.raises(Unavailable, match=f"{NODE} stays cordoned until .*kubectl uncordon"):
            await removal.end(hit)
        kube.denied = set()
        await removal.end(hit)
        assert "unschedulable" not in kube.objects["nodes", NODE]["spec"]
        await removal.close()


async def test_without_a_right_to_cordon_nothing_is_broken(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        there.kube.denied = {("get", "nodes")}
        with pytest.raises(ApiError, match=r"may not get nodes .* of the cluster: a ClusterRole"):
            await run_in_cluster(experiment(cordon=True), there.settings(), there.access)
        assert ("pods", "w1") in there.kube.objects


async def test_what_a_dead_run_left_cordoned_is_lifted_when_its_time_is_up(tmp_path: Path) -> None:
    async with fake_kube() as kube, Connection(kubeconfig(tmp_path, str(kube.url))) as connection:
        kind = {"apiVersion": "v1", "kind": "Node", "spec": {}}
        for name in ("n1", "n2", "n3"):
            kube.put({**kind, "metadata": {"name": name, "annotations": {ANNOTATION: "junk"}}})

        def cordoned() -> set[str]:
            found = {name: kube.objects["nodes", name]["spec"] for name in ("n1", "n2", "n3")}
            return {name for name, spec in found.items() if spec.get("unschedulable")}

        dead, ours = Nodes(connection, "dead"), Nodes(connection, "ours")
        assert await dead.cordon("n1", 600.0)
        assert await dead.cordon("n2", -5.0)
        assert not await ours.cordon("n1", 600.0)
        await ours.uncordon("n1")  # not ours
        assert cordoned() == {"n1", "n2"}
        assert await ours.sweep() == ["n2"]
        assert await ours.sweep() == []
        assert cordoned() == {"n1"}
        await dead.uncordon("n1")
        assert cordoned() == set()


async def test_the_next_run_looks_for_cordons_where_it_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with release(tmp_path) as there, Connection(there.access) as connection:
        put_node(there)
        there.replacing()
        await Nodes(connection, "dead").cordon(NODE, -5.0)
        settings = there.settings(nodes=True, model="other")
        with pytest.raises(InvalidRequest, match="'other' is not served"):
            await run_in_cluster(experiment(), settings, there.access)
        assert node(there) == (False, None)
        assert f"{NODE} was left cordoned by a run that died" in caplog.text
        there.kube.denied = {("list", "nodes")}
        with pytest.raises(InvalidRequest, match="'other' is not served"):
            await run_in_cluster(experiment(), settings, there.access)
        assert "are not looked for" in caplog.text
