"""`proa doctor`: has this machine what the embedded mode needs? Every complaint names its fix."""

from __future__ import annotations

import enum
import platform
from collections.abc import Callable
from dataclasses import dataclass

from proa.local.machine import Machine

_MIB = 1 << 20
_WORKER_BYTES = 350 * _MIB  # a Triton with torch and a small program: 328 MB measured
_WORKERS = 6
_SHM_BYTES_MIN, _SHM_BYTES_GOOD = 16 * _MIB, 64 * _MIB
_FILES_MIN, _FILES_GOOD = 256, 1024
_GLIBC = (2, 35)
_INSTALL = "pip install 'proa[worker]'"


class Level(enum.Enum):
    """`FAIL`: the embedded mode cannot work. `WARN`: it can, but not in every case."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding: what was found, and, unless it is ok, what to do about it."""

    name: str
    level: Level
    found: str
    fix: str = ""


def examine_here(ports: tuple[int, ...]) -> list[Check]:
    """All checks of the machine we run on; `ports`: those that should be free."""
    if platform.system() != "Linux":  # nothing else here can even be looked at
        return [_system(platform.system())]
    return examine(Machine.inspect(ports))


def examine(machine: Machine) -> list[Check]:
    """All checks, in the order in which to mend them."""
    return [_system(machine.system), *(check(machine) for check in _CHECKS)]


def healthy(checks: list[Check]) -> bool:
    """Whether nothing failed. Warnings are no failure."""
    return all(check.level is not Level.FAIL for check in checks)


def _system(system: str) -> Check:
    fix = "use Linux; elsewhere, a Linux virtual machine or the chart"
    return _verdict("system", system == "Linux", system, fix)


def _arch(machine: Machine) -> Check:
    fix = "the Triton wheel is for x86_64 only; use an x86-64 machine, or the chart's worker image"
    return _verdict("architecture", machine.arch == "x86_64", machine.arch, fix)


def _python(machine: Machine) -> Check:
    found = "{}.{}".format(*machine.python)
    fix = "make the virtual environment with Python 3.11 or 3.12: python3.12 -m venv .venv"
    return _verdict("python", machine.python in {(3, 11), (3, 12)}, found, fix)


def _glibc(machine: Machine) -> Check:
    if machine.glibc is None:
        return Check("glibc", Level.FAIL, "none (musl?)", "use a distribution with glibc >= 2.35")
    fix = "use a newer distribution: Ubuntu 22.04, Debian 12, Fedora 36, RHEL 10 or later"
    return _verdict("glibc", machine.glibc >= _GLIBC, "{}.{}".format(*machine.glibc), fix)


def _triton(machine: Machine) -> Check:
    version = machine.packages["nvidia-pytriton"]
    if version is None or machine.triton:
        return Check("triton", Level.FAIL, machine.triton or "not installed", _INSTALL)
    return Check("triton", Level.OK, f"nvidia-pytriton {version}")


def _numpy(machine: Machine) -> Check:
    version = machine.packages["numpy"]
    if version is None:
        return Check("numpy", Level.FAIL, "not installed", _INSTALL)
    return _verdict("numpy", int(version.split(".")[0]) < 2, version, "pip install 'numpy<2'")


def _torch(machine: Machine) -> Check:
    version = machine.packages["torch"]
    if version is None:
        return Check("torch", Level.FAIL, "not installed", _INSTALL)
    built = "CPU build" if version.endswith("+cpu") else "GPU build"
    found = f"{version} ({built}, {machine.gpus} GPU(s) here)"
    if machine.gpus and built == "CPU build":
        fix = "to use the GPU, install a CUDA build of torch"
        return Check("torch", Level.WARN, found, fix)
    return Check("torch", Level.OK, found)


def _libpython(machine: Machine) -> Check:
    name = "libpython{}.{}.so.1.0".format(*machine.python)
    if not machine.libpython:
        return Check("libpython", Level.OK, f"{name} is found")
    package = "libpython{}.{}".format(*machine.python)
    fix = (
        f"Debian, Ubuntu: apt install {package}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv"
        " install; uv and conda Pythons have it"
    )
    return Check("libpython", Level.FAIL, f"{name} is not found", fix)


def _libraries(machine: Machine) -> Check:
    if not machine.libraries_missing:
        return Check("libraries", Level.OK, "Triton finds all it needs")
    missing = ", ".join(machine.libraries_missing)
    return Check("libraries", Level.FAIL, f"Triton misses {missing}", f"reinstall: {_INSTALL}")


def _shm(machine: Machine) -> Check:
    name, free = "/dev/shm", machine.shm_bytes_free  # noqa: S108
    if free is None:
        fix = "mount a tmpfs there that you may write to: mount -t tmpfs -o size=1g tmpfs /dev/shm"
        return Check(name, Level.FAIL, machine.shm_error, fix)
    fix = "give it at least 64 MB: mount -o remount,size=1g /dev/shm; docker run --shm-size=1g"
    return _graded(name, free, _SHM_BYTES_MIN, _SHM_BYTES_GOOD, f"{_size(free)} free", fix)


def _memory(machine: Machine) -> Check:
    free = machine.memory_bytes
    fix = f"a worker takes about {_size(_WORKER_BYTES)}: start fewer with proa up --workers"
    return _graded(
        "memory",
        free,
        3 * _WORKER_BYTES,
        (_WORKERS + 2) * _WORKER_BYTES,
        f"{_size(free)} free",
        fix,
    )


def _cpus(machine: Machine) -> Check:
    return _graded("cpus", machine.cpus, 1, 2, str(machine.cpus), "give it two CPUs or more")


def _files(machine: Machine) -> Check:
    fix = "raise the limit of open files: ulimit -n 4096"
    found = f"{machine.files_max} open files"
    files = machine.files_max if machine.files_max >= 0 else _FILES_GOOD  # -1: no limit
    return _graded("ulimit -n", files, _FILES_MIN, _FILES_GOOD, found, fix)


def _ports(machine: Machine) -> Check:
    if not machine.ports_taken:
        return Check("ports", Level.OK, "free")
    taken = ", ".join(map(str, machine.ports_taken))
    fix = "stop what listens there (ss -ltnp), or choose others: proa up --port --admin-port"
    return Check("ports", Level.WARN, f"{taken} taken", fix)


def _priority(machine: Machine) -> Check:
    if machine.priority:
        return Check("priority", Level.OK, f"low for starting processes, by {machine.priority}")
    fix = "let your user go back to normal priority: a line '* - nice 0' in limits.conf"
    found = "starting workers take CPU from serving ones"
    return Check("priority", Level.WARN, found, fix)


def _verdict(name: str, ok: bool, found: str, fix: str) -> Check:
    return Check(name, Level.OK, found) if ok else Check(name, Level.FAIL, found, fix)


def _graded(name: str, value: int, least: int, good: int, found: str, fix: str) -> Check:
    if value >= good:
        return Check(name, Level.OK, found)
    return Check(name, Level.WARN if value >= least else Level.FAIL, found, fix)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


_CHECKS: tuple[Callable[[Machine], Check], ...] = (
    _arch, _python, _glibc, _triton, _numpy, _torch, _libpython, _libraries,
    _shm, _memory, _cpus, _files, _ports, _priority,
)  # fmt: skip
