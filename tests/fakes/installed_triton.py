"""The parts of the Triton wheel, laid out as Triton's own image has them in /opt/tritonserver."""

from __future__ import annotations

import shutil
from pathlib import Path

from proa.worker.launch import find_wheel


def installed_triton(folder: Path, python: str | None = None) -> Path:
    """`folder`, with a server that runs; the stub is for this Python, or for version `python`."""
    wheel = find_wheel()
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    (folder / "bin").mkdir()
    shutil.copy(wheel.server, folder / "bin")
    (folder / "lib").symlink_to(wheel.libraries)
    stub = wheel.stub
    if python is not None:
        stub = stub.parent.parent / python / stub.name
    for part in (*wheel.backend.glob("*.*"), stub):
        shutil.copy(part, backend)
    (backend / stub.name).chmod(0o755)
    return folder
