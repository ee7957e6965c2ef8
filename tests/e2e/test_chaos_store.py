"""Experiments against a real store: verdicts, what is found by name, roll-back, who is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.chaos_up import Up
from fakes.eventually import eventually_sync
from proa.local.run_file import read_run
from proa_chaos.file import load_experiment
from proa_chaos.local.keeper import now_s
from proa_chaos.local.lock import FILE_NAME

pytestmark = pytest.mark.timeout(400)

LIBRARY = Path(__file__).resolve().parents[2] / "chaos" / "experiments"
# More than r failures at once: the guard lets these pass with --force only.
BEYOND = {"kill-more-shards-than-r"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """k = 2, r = 1 on four shards, whose agents take faults."""
    folder = tmp_path_factory.mktemp("cs")
    argv = [
        sys.executable, "-m", "proa", "store", "up", "--faults", "--quiet", "--json",
        "--port", "0", "--admin-port", "0", "--run-dir", str(folder / "r"),
    ]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "proa store up has failed"
        yield Up(folder / "r")
        process.terminate()
        assert process.wait(60) == 0


def library() -> list[Any]:
    """Every experiment on a store; those that are not quick are marked `long`."""
    found = []
    for path in sorted(LIBRARY.glob("*.yaml")):
        experiment = load_experiment(path)
        if experiment.workload.store is not None:
            marks = [] if "quick" in experiment.tags else [pytest.mark.long]
            found.append(pytest.param(path, id=path.stem, marks=marks))
    return found


@pytest.mark.parametrize("path", library())
def test_an_experiment_of_the_library_has_its_verdict(up: Up, path: Path) -> None:
    force = ["--force"] if path.stem in BEYOND else []
    code, journal, said = up.run(path, *force)
    status = journal["chaosresult"]["experimentStatus"]
    assert (status["verdict"], status["phase"], code) == ("Pass", "Completed", 0), said
    assert [entry["status"] for entry in journal["rollbacks"]] == ["succeeded"] * len(
        journal["rollbacks"]
    )
    measures = journal["proa"]["measures"]["all"]
    assert measures["wrong"] == 0
    assert measures["compared"] > 2 * 4000
    out = up.run_dir / "out" / path.stem
    assert sorted(p.name for p in out.iterdir()) == ["journal.json", "report.html"]
    assert not (up.run_dir / FILE_NAME).exists()
    notes = journal["proa"]["notes"]
    match path.stem:
        case "flipped-embeddings":
            assert len(notes) >= 1
            assert all(note.startswith("scrub: crc: shard ") for note in notes)
            assert measures["repaired"] == measures["found"]
        case "kill-more-shards-than-r":
            assert "rows of table chaos-4000x16: ids 0, 1, 2" in notes[0]
        case _:
            assert notes == []


def experiment(
    folder: Path, faults: list[dict[str, Any]], during: str = "60s", deadline: str = "30s"
) -> Path:
    """An experiment of its own on a small table."""
    document = {
        "apiVersion": "proa.dev/v1alpha1",
        "kind": "ChaosExperiment",
        "metadata": {"name": "trial"},
        "spec": {
            "title": "A trial",
            "description": "of the tests",
            "workload": {
                "store": {"rows": 400, "batch": 20, "rateHz": 10},
                "phases": {"before": "300ms", "during": during, "after": "300ms"},
                "deadline": deadline,
            },
            "faults": faults,
            "hypothesis": [{"measure": "wrong", "phase": "all", "atMost": 0}],
        },
    }
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def fault(action: str, *pods: str, **rest: Any) -> dict[str, Any]:
    selector = {"pods": {"local": list(pods)}}
    return {"name": action, "action": action, "mode": "all", "selector": selector, **rest}


def frozen(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.long
def test_more_than_r_shards_are_refused_and_nothing_is_touched(up: Up, tmp_path: Path) -> None:
    before = [p.pid for p in read_run(up.run_dir).processes]
    code, _, said = up.run(experiment(tmp_path, [fault("kill-shard", "shard-0", "shard-2")]))
    assert code == 2
    assert "2 failure domains of the store's shards would be hit at once (agent-0, agent-2)" in said
    assert [p.pid for p in read_run(up.run_dir).processes] == before


@pytest.mark.long
def test_pushes_that_get_no_answer_in_time_count_once(up: Up, tmp_path: Path) -> None:
    """They fail, and are sent again: whether they were written or not, no row is wrong."""
    faults = [
        fault("pause", "shard-1", duration="3s", parameters={"how": "process"}),
        fault("pause", "coordinator", at="5s", duration="3s", parameters={"how": "process"}),
    ]
    for number, one in enumerate(faults):
        one["name"] = f"freeze-{number}"
    path = experiment(tmp_path, faults, during="9s", deadline="700ms")
    code, journal, said = up.run(path)
    assert code == 0, said
    measures = journal["proa"]["measures"]["all"]
    assert measures["failed"] > 0
    assert measures["statuses"].keys() <= {"UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED"}
    assert measures["wrong"] == measures["lost"] == 0
    assert measures["compared"] >= 800


@pytest.mark.long
def test_a_killed_runner_leaves_no_fault_behind(up: Up, tmp_path: Path) -> None:
    """A frozen shard is let go at once; an old disk comes when its time is up, and not before."""
    faults = [fault("pause", "shard-1", duration="12s", parameters={"how": "process"})]
    agent, server = up.pid("agent-1"), up.pid("valkey-1")
    with up.chaos(experiment(tmp_path, faults)) as runner:
        try:
            eventually_sync(lambda: frozen(agent) and frozen(server), timeout_s=60)
        finally:
            runner.kill()
    eventually_sync(lambda: not (frozen(agent) or frozen(server)), timeout_s=5)
    code, _, said = up.run(experiment(tmp_path, []))
    assert code == 1
    assert "died, and its faults may act for" in said


@pytest.mark.long
def test_told_to_stop_a_runner_rolls_back_and_says_stopped(up: Up, tmp_path: Path) -> None:
    eventually_sync(lambda: _free(up.run_dir / FILE_NAME), timeout_s=30)
    with up.chaos(experiment(tmp_path, [fault("stale-disk", "shard-3")])) as runner:
        lines = []
        assert runner.stderr is not None
        for line in runner.stderr:
            lines.append(line)
            if "stale-disk shard-3" in line:
                runner.terminate()
                break
        out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 1, lines
    journal = json.loads(out)
    assert journal["chaosresult"]["experimentStatus"]["verdict"] == "Stopped"
    assert [entry["status"] for entry in journal["rollbacks"]] == ["succeeded"]
    code, journal, said = up.run(experiment(tmp_path, [], during="300ms"))
    assert code == 0, said
    assert journal["proa"]["measures"]["all"]["wrong"] == 0


def _free(path: Path) -> bool:
    """No fault of a dead runner may act any more."""
    return not path.exists() or json.loads(path.read_text())["until_s"] <= now_s()
