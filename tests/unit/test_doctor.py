"""Every check of `proa doctor`, on machines that lack one thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proa.local.doctor import Check, Level, examine, healthy
from proa.local.machine import Machine

GOOD = Machine(
    system="Linux",
    arch="x86_64",
    python=(3, 12),
    glibc=(2, 36),
    packages={"nvidia-pytriton": "0.7.0", "numpy": "1.26.4", "torch": "2.13.0+cpu"},
    triton="",
    libpython="",
    libraries_missing=(),
    gpus=0,
    shm_bytes_free=1 << 30,
    shm_error="",
    memory_bytes=16 << 30,
    cpus=4,
    files_max=4096,
    ports_taken=(),
    priority="autogroup",
)


def finding(name: str, **changes: object) -> Check:
    checks = examine(replace(GOOD, **changes))  # type: ignore[arg-type]
    others = [check for check in checks if check.name != name]
    assert all(check.level is Level.OK for check in others), "one trouble, one complaint"
    return next(check for check in checks if check.name == name)


def test_a_good_machine_has_no_complaint() -> None:
    checks = examine(GOOD)
    assert healthy(checks)
    assert {check.level for check in checks} == {Level.OK}
    assert not [check.fix for check in checks if check.fix]
    assert len({check.name for check in checks}) == len(checks) == 15


@pytest.mark.parametrize(
    ("name", "changes", "fix"),
    [
        ("system", {"system": "Darwin"}, "use Linux"),
        ("architecture", {"arch": "aarch64"}, "x86-64"),
        ("python", {"python": (3, 13)}, "3.11 or 3.12"),
        ("glibc", {"glibc": (2, 31)}, "newer distribution"),
        ("glibc", {"glibc": None}, "glibc >= 2.35"),
        ("triton", {"packages": {**GOOD.packages, "nvidia-pytriton": None}}, "pip install"),
        ("triton", {"triton": "incomplete"}, "pip install"),
        ("numpy", {"packages": {**GOOD.packages, "numpy": "2.1.0"}}, "numpy<2"),
        ("torch", {"packages": {**GOOD.packages, "torch": None}}, "pip install"),
        ("libpython", {"libpython": "not there"}, "apt install libpython3.12"),
        ("libraries", {"libraries_missing": ("libb64.so.0",)}, "reinstall"),
        ("/dev/shm", {"shm_bytes_free": None, "shm_error": "Permission denied"}, "tmpfs"),
        ("/dev/shm", {"shm_bytes_free": 1 << 20}, "remount"),
        ("memory", {"memory_bytes": 512 << 20}, "--workers"),
        ("ulimit -n", {"files_max": 64}, "ulimit -n 4096"),
    ],
)
def test_what_cannot_work_fails_and_names_the_fix(
    name: str, changes: dict[str, object], fix: str
) -> None:
    check = finding(name, **changes)
    assert check.level is Level.FAIL
    assert fix in check.fix
    assert not healthy([check])


@pytest.mark.parametrize(
    ("name", "changes", "fix"),
    [
        ("torch", {"gpus": 1}, "CUDA build"),
        ("/dev/shm", {"shm_bytes_free": 32 << 20}, "remount"),
        ("memory", {"memory_bytes": 2 << 30}, "--workers"),
        ("cpus", {"cpus": 1}, "two CPUs"),
        ("ulimit -n", {"files_max": 512}, "ulimit -n 4096"),
        ("ports", {"ports_taken": (8001,)}, "--port"),
        ("priority", {"priority": ""}, "limits.conf"),
    ],
)
def test_what_may_work_is_a_warning(name: str, changes: dict[str, object], fix: str) -> None:
    check = finding(name, **changes)
    assert check.level is Level.WARN
    assert fix in check.fix
    assert healthy([check])


def test_the_message_holds_what_was_found() -> None:
    assert finding("ports", ports_taken=(8001, 9090)).found == "8001, 9090 taken"
    assert finding("libraries", libraries_missing=("a.so",)).found == "Triton misses a.so"
    assert finding("ulimit -n", files_max=-1).level is Level.OK


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
def test_this_machine_can_be_inspected() -> None:
    machine = Machine.inspect(())
    assert machine.system == "Linux"
    assert machine.memory_bytes > 0
    assert machine.packages["numpy"]
