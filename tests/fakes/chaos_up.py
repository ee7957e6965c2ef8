"""A `proa up --faults` with real Triton processes, and experiments against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proa.local.run_file import read_run
from proa.rpc import Channels
from proa_chaos.experiment import Experiment
from proa_chaos.inband import InBand
from proa_chaos.local.lock import FILE_NAME
from proa_chaos.selection import ROLE, Target


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


@contextlib.contextmanager
def started(folder: Path, spec: Path, *, workers: int) -> Iterator[Up]:
    """`proa up` of `spec`, ready, until the end of the block."""
    argv = [
        sys.executable, "-m", "proa", "up", str(spec), "--faults", "--quiet", "--json",
        "--workers", str(workers), "--service-ms", "40", "--port", "0", "--admin-port", "0",
        "--run-dir", str(folder / "run"),
    ]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, "proa up has failed"
        yield Up(folder / "run")
        process.terminate()
        assert process.wait(60) == 0


def check_run(up: Up, path: Path, experiment: Experiment, *argv: str) -> dict[str, Any]:
    """Run the experiment at `path` of the library: it has its verdict, and leaves nothing behind.
    Its journal."""
    code, journal, said = up.run(path, *argv)
    status = journal["chaosresult"]["experimentStatus"]
    assert status["verdict"] == experiment.expected, said
    assert code == {"Pass": 0, "Fail": 1}[experiment.expected]
    assert journal["deviated"] == (experiment.expected == "Fail")
    assert status["phase"] == "Completed"
    assert journal["steady_states"]["before"]["steady_state_met"]
    assert journal["proa"]["recoveryS"] is not None
    assert up.active() == {}
    out = up.run_dir / "out" / path.stem
    assert sorted(p.name for p in out.iterdir()) == ["journal.json", "report.html"]
    assert not (up.run_dir / FILE_NAME).exists()
    return journal
