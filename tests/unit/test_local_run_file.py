"""run.json: who runs where, and when it is stale."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from proa.errors import SettingsError, Unavailable
from proa.local.processes import ProcessStatus, State
from proa.local.run_file import FILE_NAME, RunFile, read_run
from proa.local.session import start_ticks
from proa.local.topology import ModelPlan, Topology

TOPOLOGY = Topology(
    "127.0.0.1:8001", "127.0.0.1:9090", (ModelPlan("digits", Path("d.yaml"), None, ()),), (), ()
)
STATUS = ProcessStatus("worker-0", State.READY, 17, 2, 7001, 7002)


def change(folder: Path, **fields: object) -> None:
    path = folder / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    RunFile(tmp_path / "deep").write(TOPOLOGY, [STATUS])
    run = read_run(tmp_path / "deep")
    assert (run.pid, run.address, run.models) == (os.getpid(), "127.0.0.1:8001", ("digits",))
    process = run.processes[0]
    assert (process.name, process.state, process.pid, process.restarts) == (
        "worker-0", "ready", 17, 2,
    )  # fmt: skip
    assert process.admin_address == "127.0.0.1:7002"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [FILE_NAME]


def test_without_a_file_the_error_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nothing runs here; start it with `proa up SPEC`"):
        read_run(tmp_path)


def test_a_file_whose_writer_is_gone_is_stale(tmp_path: Path) -> None:
    file = RunFile(tmp_path)
    file.write(TOPOLOGY, [])
    # Our pid, but another start: the pid has come again.
    change(tmp_path, start_ticks=1)
    with pytest.raises(Unavailable, match=f"left behind by process {os.getpid()}"):
        read_run(tmp_path)
    file.claim()
    assert not (tmp_path / FILE_NAME).exists()


def test_a_directory_in_use_is_refused_naming_the_other(tmp_path: Path) -> None:
    file = RunFile(tmp_path)
    file.write(TOPOLOGY, [])
    parent = os.getppid()
    change(tmp_path, pid=parent, start_ticks=start_ticks(parent))
    with pytest.raises(SettingsError, match=f"process {parent} already runs here.*--run-dir"):
        file.claim()
    assert (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1}'])
def test_a_file_that_is_none_of_ours_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(Unavailable, match="nothing runs here"):
        read_run(tmp_path)
    RunFile(tmp_path).claim()


def test_removing_twice_does_no_harm(tmp_path: Path) -> None:
    file = RunFile(tmp_path)
    file.write(TOPOLOGY, [])
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []
