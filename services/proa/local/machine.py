"""What this machine is and has: facts for `proa doctor`, gathered without changing anything."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from proa.errors import EnvironmentLacks
from proa.local.ports import is_free
from proa.local.priority import Priority
from proa.worker import launch

_PACKAGES = ("nvidia-pytriton", "numpy", "torch")
_LDD_S_MAX = 20.0


@dataclass(frozen=True)
class Machine:
    """Facts. Sizes in bytes; versions as (major, minor); None where there is no such thing."""

    system: str
    arch: str
    python: tuple[int, int]
    glibc: tuple[int, int] | None
    packages: Mapping[str, str | None]
    triton: str
    """Why the Triton wheel cannot be used; empty where it can."""
    libpython: str
    """Why Triton's Python stub does not find libpython; empty where it does."""
    libraries_missing: tuple[str, ...]
    """Shared libraries that tritonserver or its stub ask for and the loader does not find."""
    gpus: int
    shm_bytes_free: int | None
    shm_error: str
    memory_bytes: int
    cpus: int
    files_max: int
    ports_taken: tuple[int, ...]
    priority: str

    @classmethod
    def inspect(cls, ports: tuple[int, ...]) -> Machine:
        """Look at the machine we run on; `ports`: those that should be free."""
        shm_free, shm_error = _shm(launch.SHM)
        priority = Priority.detect()
        return cls(
            system=platform.system(),
            arch=platform.machine(),
            python=sys.version_info[:2],
            glibc=_glibc(),
            packages={name: _version(name) for name in _PACKAGES},
            triton=_reason(launch.find_wheel),
            libpython=_reason(launch.find_libpython),
            libraries_missing=_libraries_missing(),
            gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            shm_bytes_free=shm_free,
            shm_error=shm_error,
            memory_bytes=_memory_bytes(),
            cpus=len(os.sched_getaffinity(0)),
            files_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ports_taken=tuple(port for port in ports if not is_free(port)),
            priority=priority.describe() if priority.nice or priority.autogroup else "",
        )


def _glibc() -> tuple[int, int] | None:
    name, version = platform.libc_ver()
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if name == "glibc" and found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _reason(check: object) -> str:
    assert callable(check)
    try:
        check()
    except EnvironmentLacks as exc:
        return str(exc)
    return ""


def _libraries_missing() -> tuple[str, ...]:
    """Ask the loader itself. Nothing is missing where we cannot ask."""
    ldd = shutil.which("ldd")
    try:
        wheel, libpython = launch.find_wheel(), launch.find_libpython()
    except EnvironmentLacks:
        return ()
    if ldd is None:
        return ()
    folders = [wheel.libraries, *([libpython] if libpython else [])]
    path = os.pathsep.join([*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")])
    missing: set[str] = set()
    for binary in (wheel.server, wheel.stub):
        asked = subprocess.run(
            [ldd, str(binary)],
            env={**os.environ, "LD_LIBRARY_PATH": path.rstrip(os.pathsep)},
            capture_output=True,
            text=True,
            timeout=_LDD_S_MAX,
            check=False,
        )
        missing |= set(re.findall(r"^\s*(\S+) => not found", asked.stdout, re.MULTILINE))
    return tuple(sorted(missing))


def _shm(folder: Path) -> tuple[int | None, str]:
    try:
        with tempfile.NamedTemporaryFile(prefix="proa-doctor-", dir=folder) as file:
            file.write(b"x")
            file.flush()
        found = os.statvfs(folder)
    except OSError as exc:
        return None, os.strerror(exc.errno or errno.EIO)
    return found.f_bavail * found.f_frsize, ""


def _memory_bytes() -> int:
    """Memory that new processes may use: what the machine has left, or the cgroup's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            available = min(available, int(text))
    return available
