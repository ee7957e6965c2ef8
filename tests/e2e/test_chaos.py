"""Experiments against real Triton processes: verdicts, roll-back, and who is refused."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2

from fakes.chaos_up import Up, check_run, started
from fakes.cluster import until
from fakes.eventually import eventually_sync
from fakes.kube_fake import NAMESPACE, Object, fake_kube, kubeconfig, pod
from fakes.programs import INPUT, write_tiny_spec
from proa import wire
from proa.cluster.connection import Connection
from proa.local.run_file import read_run
from proa_chaos.blast import check_blast
from proa_chaos.experiment import Choice, Experiment, Fault, Parameters, Selector
from proa_chaos.file import load_experiment
from proa_chaos.kubernetes.backend import KubernetesBackend
from proa_chaos.kubernetes.doors import Doors
from proa_chaos.kubernetes.faults import Ways
from proa_chaos.kubernetes.mesh import Mesh
from proa_chaos.kubernetes.nodes import Nodes
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.plan import plan
from proa_chaos.selection import ROLE

pytestmark = [pytest.mark.alone, pytest.mark.triton, pytest.mark.timeout(400)]

LIBRARY = Path(__file__).resolve().parents[2] / "chaos" / "experiments"
WORKERS = 4
STORM = "every-worker-alarms"
# More than r failures at once: the guard lets these pass with --force only.
BEYOND = {"double-failure", STORM}
# So short that one experiment leaves nobody in quarantine for the next one's steady state.
PROTECTION = {"mode": "correct", "quarantineWindowMinutes": 0.15}
TTL_S = 6
CAPPED = "proa_abft_quarantine_capped_total"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("chaos")
    spec = write_tiny_spec(folder, protection=PROTECTION)
    with started(folder, spec, workers=WORKERS) as running:
        yield running


def library(pool: str) -> list[Any]:
    """Every experiment for models with that pool; those that are not quick are marked `long`."""
    found = []
    for path in sorted(LIBRARY.glob("*.yaml")):
        experiment = load_experiment(path)
        marks = [] if "quick" in experiment.tags else [pytest.mark.long]
        if experiment.workload.store is None and (experiment.pool or "shared") == pool:
            found.append(pytest.param(path, id=path.stem, marks=marks))
    return found


@pytest.mark.parametrize("path", library("shared"))
def test_an_experiment_of_the_library_has_its_verdict(up: Up, path: Path) -> None:
    force = ["--force"] if path.stem in BEYOND else []
    before = metric(up, CAPPED)
    check_run(up, path, load_experiment(path), *force)
    assert (metric(up, CAPPED) > before) == (path.stem == STORM)
    assert metric(up, "proa_abft_quarantined") <= 1


def metric(up: Up, name: str) -> float:
    """The sum of the frontend's samples of that name."""
    url = f"http://{read_run(up.run_dir).admin_address}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.long
@pytest.mark.parametrize("path", library("dedicated"))
def test_an_experiment_for_a_dedicated_pool_has_its_verdict(path: Path, tmp_path: Path) -> None:
    spec = write_tiny_spec(tmp_path, redundancy={"pool": "dedicated"})
    with started(tmp_path, spec, workers=WORKERS) as running:
        check_run(running, path, load_experiment(path))


def test_an_experiment_for_a_dedicated_pool_is_refused_elsewhere(up: Up) -> None:
    code, _, said = up.run(LIBRARY / "parity-pool-lost.yaml", "--parallel")
    assert code == 2
    assert "spec.requires.pool: this experiment is for a model with redundancy.pool" in said


def experiment(
    folder: Path, faults: list[dict[str, Any]], hypothesis: list[dict[str, Any]], during: str = "2s"
) -> Path:
    """An experiment of its own, short before and after."""
    document = {
        "apiVersion": "proa.dev/v1alpha1",
        "kind": "ChaosExperiment",
        "metadata": {"name": "trial"},
        "spec": {
            "title": "A trial",
            "description": "of the tests",
            "workload": {"rateHz": 20, "phases": {"before": "1s", "during": during, "after": "1s"}},
            "faults": faults,
            "hypothesis": hypothesis,
        },
    }
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def fault(action: str, *pods: str, **rest: Any) -> dict[str, Any]:
    selector = {"pods": {"local": list(pods)}}
    return {"name": action, "action": action, "mode": "all", "selector": selector, **rest}


NO_FAILURE = {"measure": "failed", "phase": "all", "atMost": 0}


def frozen(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_killed_runner_leaves_no_fault_behind(up: Up, tmp_path: Path) -> None:
    faults = [
        fault("slow", "worker-0", duration=f"{TTL_S}s", parameters={"delay": "300ms"}),
        fault("pause", "decoder", duration=f"{TTL_S}s", parameters={"how": "process"}),
    ]
    path = experiment(tmp_path, faults, [NO_FAILURE], during="60s")
    decoder = up.pid("decoder")
    with up.chaos(path) as runner:
        try:
            eventually_sync(lambda: frozen(decoder), timeout_s=60)
            code, _, said = up.run(path)
            assert code == 1
            assert "experiment 'trial' of process" in said
            assert "--parallel" in said
        finally:
            runner.kill()
    eventually_sync(lambda: not frozen(decoder), timeout_s=2)
    assert list(up.active()) in (["worker-0"], [])  # its time to live goes on, and runs out
    code, _, said = up.run(path)
    assert code == 1
    assert "died, and its faults may act for" in said
    eventually_sync(lambda: up.active() == {}, timeout_s=TTL_S + 5)


def test_told_to_stop_a_runner_rolls_back_and_says_stopped(up: Up, tmp_path: Path) -> None:
    eventually_sync(lambda: up.active() == {}, timeout_s=TTL_S + 5)
    faults = [fault("slow", "worker-1", parameters={"delay": "300ms"})]
    path = experiment(tmp_path, faults, [NO_FAILURE], during="120s")
    with up.chaos(path, "--parallel") as runner:
        eventually_sync(lambda: up.active().keys() == {"worker-1"}, timeout_s=60)
        runner.terminate()
        out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 1
    journal = json.loads(out)
    assert journal["chaosresult"]["experimentStatus"]["verdict"] == "Stopped"
    assert [entry["status"] for entry in journal["rollbacks"]] == ["succeeded"]
    assert up.active() == {}


def pods(up: Up) -> list[Object]:
    """The processes of `proa up` as a cluster would show them."""
    found = []
    for process in read_run(up.run_dir).processes:
        role = process.name.partition("-")[0]
        port = int(process.address.rpartition(":")[2])
        item = pod(process.name, port, role=role, node=f"node-of-{process.name}")
        if role == "worker":
            item["metadata"]["labels"]["proa.dev/model"] = "tiny"
        found.append(item)
    return found


async def seconds(address: str) -> float:
    """How long one computation of the worker at `address` takes."""
    channel = grpc.aio.insecure_channel(address)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )
    image = {"image": np.zeros((1, *INPUT.shape), np.float32)}
    begin = time.perf_counter()
    await call(wire.write_request("tiny", image, outputs=["logits"], program="deployed"))
    await channel.close()
    return time.perf_counter() - begin


async def test_the_backend_for_clusters_slows_a_real_worker_down(up: Up, tmp_path: Path) -> None:
    async with (
        fake_kube() as kube,
        Connection(kubeconfig(tmp_path, str(kube.url))) as connection,
    ):
        for item in pods(up):
            kube.put(item)
        listed, nodes = Pods(connection, NAMESPACE, "r"), Nodes(connection, "e2e")
        address = read_run(up.run_dir).address
        mesh = Mesh(connection, NAMESPACE, "e2e")
        ways = Ways(listed, Removal(listed, nodes), mesh, "e2e")
        place = KubernetesBackend(ways, Doors(None, None, None), address, seed=0)
        try:
            await acts_and_ends(place)
        finally:
            await place.close()


async def acts_and_ends(place: KubernetesBackend) -> None:
    """`slow` at one worker: until it is ended, and until its time is up."""
    assert await place.models() == ("tiny",)

    async def ready() -> bool:
        return not await place.waiting_for("tiny")

    await until(ready)  # an earlier experiment may have left a worker in quarantine
    chosen = Choice(Selector(labels={ROLE: "worker"}))
    slow = Fault("slow", "slow", chosen, parameters=Parameters(delay_ms=700))
    trial = Experiment("trial", "t", "d", (), (slow,))
    (hit,) = plan(trial, await place.targets("tiny"), seed=0)
    check_blast([hit], await place.pools("tiny"))
    await place.prepare([hit])

    async def quick() -> bool:
        return await seconds(hit.target.address) < 0.7

    await place.inject(hit, 60.0)
    assert await seconds(hit.target.address) >= 0.7
    await place.end(hit)
    await until(quick)  # the machine may be busy
    await place.inject(hit, 1.0)
    assert await seconds(hit.target.address) >= 0.7
    await until(quick)


REFUSED = [
    (fault("slow", "worker-9", parameters={"delay": "1s"}), "matches nothing of worker-0"),
    (fault("pause", "worker-0", "worker-1"), "2 failure domains of the workers of 'tiny'"),
    (fault("kill", "frontend"), "would leave 0 ready of the frontends"),
]


@pytest.mark.parametrize(("broken", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_refused_touches_nothing(
    up: Up, tmp_path: Path, broken: dict[str, Any], words: str
) -> None:
    path = experiment(tmp_path, [broken], [NO_FAILURE])
    before = [p.pid for p in read_run(up.run_dir).processes]
    code, _, said = up.run(path, "--parallel")
    assert code == 2
    assert words in said
    assert [p.pid for p in read_run(up.run_dir).processes] == before
