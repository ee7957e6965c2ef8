"""Faults of the operating system end by themselves, and one experiment runs at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.eventually import eventually_sync
from proa.cli.main import main
from proa.errors import Unavailable
from proa.local.session import start_ticks
from proa_chaos.experiment import Experiment, Probe, Workload
from proa_chaos.local.command import Options, adapted
from proa_chaos.local.helper import Helper
from proa_chaos.local.keeper import now_s
from proa_chaos.local.lock import FILE_NAME, locked

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
TRIAL = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {name: trial}
spec:
  title: t
  description: d
  hypothesis: [{measure: failed, atMost: 0}]
"""


@pytest.fixture
def victim():
    """A process that leads a session, as those of `proa up` do."""
    with subprocess.Popen(SLEEPER, start_new_session=True) as process:
        yield process
        process.kill()


def state(pid: int) -> str:
    """T: stopped; S: asleep; R: busy; empty: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def order(victim) -> dict[str, object]:
    return {"deed": "stop", "processes": [(victim.pid, start_ticks(victim.pid))]}


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_freeze_ends_when_its_time_is_up(victim):
    helper = await Helper.start(order(victim))
    assert state(victim.pid) != "T", "nothing happens before the word"
    await helper.go(1.0)
    eventually_sync(lambda: state(victim.pid) == "T")
    eventually_sync(lambda: state(victim.pid) == "S")
    await helper.end()


async def test_a_freeze_ends_when_it_is_ended(victim):
    helper = await Helper.start(order(victim))
    await helper.go(600)
    eventually_sync(lambda: state(victim.pid) == "T")
    await helper.end()
    eventually_sync(lambda: state(victim.pid) == "S")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
async def test_a_helper_that_is_told_to_go_ends_its_fault(victim, number):
    helper = await Helper.start(order(victim))
    await helper.go(600)
    os.kill(helper.pid, number)
    eventually_sync(lambda: state(victim.pid) == "S")


async def test_an_unused_helper_does_nothing(victim):
    helper = await Helper.start(order(victim))
    await helper.end()
    eventually_sync(lambda: state(victim.pid) == "S")


async def test_another_process_of_the_same_number_is_left_alone(victim):
    helper = await Helper.start(order(victim) | {"processes": [(victim.pid, 1)]})
    await helper.go(600)
    assert state(victim.pid) != "T"
    await helper.end()


async def test_a_hog_is_gone_when_it_is_ended():
    helper = await Helper.start({"deed": "hog", "workers": 2, "load": 10})
    await helper.go(600)
    busy = children(helper.pid)
    assert len(busy) == 2
    await helper.end()
    assert [state(pid) for pid in busy] == ["", ""]


async def test_a_hog_ends_without_its_keeper():
    helper = await Helper.start({"deed": "hog", "workers": 2, "load": 10})
    await helper.go(600)
    busy = children(helper.pid)
    os.kill(helper.pid, signal.SIGKILL)
    eventually_sync(lambda: [state(pid) for pid in busy] == ["", ""])


async def test_a_helper_that_has_died_is_an_error(victim):
    helper = await Helper.start(order(victim))
    os.kill(helper.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"helper of .* has died"):
        await helper.go(1)
    await helper.end()


def test_a_runner_that_is_killed_leaves_no_freeze_behind(victim, tmp_path):
    script = tmp_path / "runner.py"
    script.write_text(
        "import asyncio, json, sys\n"
        "from proa_chaos.local.helper import Helper\n"
        "async def main():\n"
        "    helper = await Helper.start(json.loads(sys.argv[1]))\n"
        "    await helper.go(600)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, str(script), json.dumps(order(victim))]) as runner:
        eventually_sync(lambda: state(victim.pid) == "T", timeout_s=30)
        runner.kill()
        eventually_sync(lambda: state(victim.pid) == "S")


def test_two_experiments_at_once_are_refused(tmp_path):
    path = tmp_path / FILE_NAME
    with locked(tmp_path, "first"):
        with (
            pytest.raises(Unavailable, match=rf"'first' of process {os.getpid()} .*--parallel"),
            locked(tmp_path, "second"),
        ):
            pytest.fail("locked twice")
        assert path.exists()
    with locked(tmp_path, "second"):
        assert json.loads(path.read_text())["experiment"] == "second"
    assert not path.exists()


def test_a_dead_experiment_locks_for_as_long_as_its_faults_may_act(tmp_path):
    path = tmp_path / FILE_NAME
    note = {"experiment": "dead", "pid": 1, "until_s": now_s() + 30}
    path.write_text(json.dumps(note))
    with (
        pytest.raises(Unavailable, match=r"'dead' died, and its faults may act for (30|29)\.\d s"),
        locked(tmp_path, "next"),
    ):
        pytest.fail("its faults act still")
    path.write_text(json.dumps(note | {"until_s": now_s() - 1}))
    with locked(tmp_path, "next"):
        pass


def test_junk_in_the_lock_is_no_lock(tmp_path):
    (tmp_path / FILE_NAME).write_text("}{")
    with locked(tmp_path, "next") as lock:
        lock.faults_until(now_s() + 5)


def chaos(capsys, tmp_path, *argv, text=TRIAL):
    path = tmp_path / "trial.yaml"
    path.write_text(text)
    code = main(["chaos", "run", str(path), "--run-dir", str(tmp_path / "run"), *argv])
    return code, capsys.readouterr().err


def test_where_nothing_runs_the_command_says_so(capsys, tmp_path):
    code, said = chaos(capsys, tmp_path, "--local")
    assert code == 1
    assert "nothing runs here; start it with `proa up SPEC`" in said


def test_a_malformed_file_is_wrong_use_with_file_line_and_key(capsys, tmp_path):
    code, said = chaos(capsys, tmp_path, "--local", text=TRIAL.replace("failed", "faild"))
    assert code == 2
    assert f"{tmp_path / 'trial.yaml'}:7: spec.hypothesis[0].measure: 'faild'" in said


def test_a_place_has_to_be_named(capsys, tmp_path):
    code, said = chaos(capsys, tmp_path)
    assert code == 2
    assert "--local" in said


def test_options_stand_above_the_file(tmp_path):
    workload = Workload(rate_hz=30, during_rate_hz=300)
    experiment = Experiment("trial", "t", "d", (Probe("failed", at_most=0.0),), workload=workload)
    options = Options(rate_hz=10, model="other", inputs=tmp_path / "q.npz")
    found = adapted(experiment, options).workload
    assert (found.rate_hz, found.during_rate_hz) == (10, 100)
    assert (found.model, found.inputs) == ("other", tmp_path / "q.npz")
    assert adapted(experiment, Options()) == experiment
