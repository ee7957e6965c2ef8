"""One experiment at a time: a locked file in the run directory, which says what may still act."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proa.errors import Unavailable
from proa_chaos.local.keeper import now_s

FILE_NAME = "chaos.lock"


class Lock:
    """A held lock. The kernel lets go of it when the holder dies, however it dies."""

    def __init__(self, file: int, experiment: str) -> None:
        self._file = file
        self._experiment = experiment
        self.faults_until(0.0)

    def faults_until(self, end_s: float) -> None:
        """Faults may act until `end_s` (seconds since boot), should we die now."""
        note = {"experiment": self._experiment, "pid": os.getpid(), "until_s": end_s}
        text = json.dumps(note).encode()
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))


@contextlib.contextmanager
def locked(run_dir: Path, experiment: str) -> Iterator[Lock]:
    """Hold the run directory. Raises Unavailable while another experiment runs there, or while
    faults of one that died may still act."""
    path = run_dir / FILE_NAME
    file = _open(path)
    try:
        left = _read(file)
        left_s = float(left.get("until_s", 0.0)) - now_s()
        if left_s > 0:
            raise Unavailable(
                f"{path}: experiment {left.get('experiment')!r} died, and its faults may act for"
                f" {left_s:.1f} s more; wait for that, or --parallel"
            )
        try:
            yield Lock(file, experiment)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _open(path: Path) -> int:
    """The locked file; opened again when its last holder removed it meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            note = _read(file)
            os.close(file)
            raise Unavailable(
                f"{path}: experiment {note.get('experiment')!r} of process {note.get('pid')} runs"
                " here; wait for its end, or run both: --parallel"
            ) from exc
        if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
            return file
        os.close(file)


def _read(file: int) -> dict[str, Any]:
    """What the last holder noted; empty when that is nothing."""
    try:
        found = json.loads(os.pread(file, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
