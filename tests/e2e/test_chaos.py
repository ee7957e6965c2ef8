"""Experiments against real Triton processes: verdicts, roll-back, and who is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.eventually import eventually_sync
from fakes.programs import write_tiny_spec
from proa.local.run_file import read_run
from proa.rpc import Channels
from proa_chaos.file import load_experiment
from proa_chaos.inband import InBand
from proa_chaos.local.lock import FILE_NAME
from proa_chaos.selection import ROLE, Target

pytestmark = [pytest.mark.triton, pytest.mark.timeout(400)]

LIBRARY = Path(__file__).resolve().parents[2] / "chaos" / "experiments"
WORKERS = 4
# More than r failures at once: the guard lets these pass with --force only.
BEYOND = {"double-failure"}
TTL_S = 6


@dataclass(frozen=True)
class Up:
    """A running `proa up --faults`."""

    run_dir: Path

    def chaos(self, path: Path, *argv: str) -> subprocess.Popen[str]:
        """`proa chaos run` of the experiment at `path`."""
        command = [sys.executable, "-m", "proa", "chaos", "run", str(path), "--local", "--json"]
        where = ["--run-dir", str(self.run_dir), "--out", str(self.run_dir / "out" / path.stem)]
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *where, *argv], stdout=pipe, stderr=pipe, text=True)

    def run(self, path: Path, *argv: str) -> tuple[int, dict[str, Any], str]:
        """The same, to its end: exit code, journal, what it said on stderr."""
        with self.chaos(path, *argv) as process:
            out, said = process.communicate(timeout=300)
        return process.returncode, json.loads(out) if out else {}, said

    def pid(self, name: str) -> int | None:
        return next(p.pid for p in read_run(self.run_dir).processes if p.name == name)

    def active(self) -> dict[str, list[str]]:
        """The kinds of the in-band faults in force, by process that has any."""
        return asyncio.run(self._active())

    async def _active(self) -> dict[str, list[str]]:
        channels = Channels(message_bytes_max=1 << 20)
        in_band = InBand(channels, "test", 0)
        found = {}
        try:
            for process in read_run(self.run_dir).processes:
                role = process.name.partition("-")[0]
                target = Target(process.name, process.name, process.address, labels={ROLE: role})
                if process.state == "ready":
                    faults = await in_band.active(target)
                    found[process.name] = [fault.id for fault in faults]
        finally:
            await channels.close()
        return {name: faults for name, faults in found.items() if faults}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("chaos")
    argv = [
        sys.executable, "-m", "proa", "up", str(write_tiny_spec(folder)), "--faults", "--quiet",
        "--json", "--workers", str(WORKERS), "--service-ms", "40", "--port", "0",
        "--admin-port", "0", "--run-dir", str(folder / "run"),
    ]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, "proa up has failed"
        yield Up(folder / "run")
        process.terminate()
        assert process.wait(60) == 0


def library() -> list[Any]:
    """Every experiment; those that are not quick are marked `long`."""
    found = []
    for path in sorted(LIBRARY.glob("*.yaml")):
        quick = "quick" in load_experiment(path).tags
        marks = [] if quick else [pytest.mark.long]
        found.append(pytest.param(path, id=path.stem, marks=marks))
    return found


@pytest.mark.parametrize("path", library())
def test_an_experiment_of_the_library_has_its_verdict(up: Up, path: Path) -> None:
    expected = load_experiment(path).expected
    force = ["--force"] if path.stem in BEYOND else []
    code, journal, said = up.run(path, *force)
    status = journal["chaosresult"]["experimentStatus"]
    assert status["verdict"] == expected, said
    assert code == {"Pass": 0, "Fail": 1}[expected]
    assert journal["deviated"] == (expected == "Fail")
    assert status["phase"] == "Completed"
    assert journal["steady_states"]["before"]["steady_state_met"]
    assert journal["proa"]["recoveryS"] is not None
    assert up.active() == {}
    out = up.run_dir / "out" / path.stem
    assert sorted(p.name for p in out.iterdir()) == ["journal.json", "report.html"]
    assert not (up.run_dir / FILE_NAME).exists()


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
