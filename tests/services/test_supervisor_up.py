"""`proa up` with everything real: packed programs, Triton workers, encoder, decoder, frontend."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.eventually import eventually
from fakes.programs import Linear, export
from proa.cli.main import main
from proa.local.run_file import RunningProcess, read_run
from proa.local.session import Family, start_ticks
from proa.worker.launch import SHM, shm_prefix

SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {name: tiny}
spec:
  model:
    program: tiny.pt2
    maxBatch: 4
    inputs: [{name: image, dtype: FP32, shape: [1, 4, 4]}]
    outputs: [{name: logits, dtype: FP32, shape: [3]}]
  redundancy: {policy: parity, k: 2, r: 1, parity: {"2": [tiny.pt2]}}
"""


def process_of(run_dir: Path, name: str) -> RunningProcess:
    return next(p for p in read_run(run_dir).processes if p.name == name)


def is_back(run_dir: Path, old: RunningProcess) -> Callable[[], bool]:
    def check() -> bool:
        now = process_of(run_dir, old.name)
        return now.state == "ready" and now.pid not in (None, old.pid)

    return check


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if start_ticks(pid) is not None}


def regions(run_dir: Path, workers: int) -> list[Path]:
    """Shared memory of the workers of `run_dir`."""
    prefixes = [shm_prefix(run_dir / "scratch" / f"worker-{i}") for i in range(workers)]
    return [path for path in SHM.iterdir() if path.name.startswith(tuple(prefixes))]


async def proa(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Run a verb, which has to succeed; what it printed as JSON."""
    assert await asyncio.to_thread(main, [*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.triton
async def test_up_serves_restarts_what_dies_or_freezes_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(Linear(), tmp_path / "tiny.pt2")
    (tmp_path / "spec.yaml").write_text(SPEC)
    run_dir = tmp_path / "run"
    up = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proa", "up", str(tmp_path / "spec.yaml"), "--run-dir", str(run_dir),
        "--port", "0", "--admin-port", "0", "--workers", "3", "--json", stdout=PIPE,
    )  # fmt: skip
    try:
        assert up.stdout is not None
        ready = json.loads(await up.stdout.readline())
        assert (ready["event"], ready["models"]) == ("ready", ["tiny"])
        family = {member.pid for member in Family(os.getsid(0)).members() if member.pid == up.pid}
        pids = [process.pid for process in read_run(run_dir).processes]
        for pid in pids:
            assert pid is not None
            family |= {member.pid for member in Family(pid).members()}
        assert len(family) == 1 + 3 * 3 + 3, "a worker, its Triton, its stub"

        query = ("infer", "tiny", "--random", "--run-dir", str(run_dir))
        answer = await proa(capsys, *query)
        assert answer["outputs"]["logits"]["shape"] == [1, 3]

        old = [process_of(run_dir, name) for name in ("worker-0", "decoder")]
        for process, number in zip(old, (signal.SIGKILL, signal.SIGSTOP), strict=True):
            assert process.pid is not None
            os.kill(process.pid, number)
        for process in old:
            await eventually(is_back(run_dir, process), timeout_s=60)
        assert (await proa(capsys, *query))["outputs"] == answer["outputs"]

        status = await proa(capsys, "status", "--run-dir", str(run_dir))
        assert [p["state"] for p in status["run"]["processes"]] == ["ready"] * 6
        assert status["report"]["models"][0]["name"] == "tiny"
        assert len(regions(run_dir, 3)) > 0

        up.terminate()
        assert await asyncio.wait_for(up.wait(), 60) == 0
    finally:
        if up.returncode is None:
            up.kill()
            await up.wait()
    assert not alive(family)
    assert [path.name for path in run_dir.iterdir()] == ["packages"]
    assert regions(run_dir, 3) == []
