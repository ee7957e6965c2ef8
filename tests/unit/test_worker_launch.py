"""How Triton is started, and what its canary sends; without starting it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.installed_triton import installed_triton
from fakes.programs import linear_model
from proa.errors import EnvironmentLacks, ProgramRefused, SettingsError
from proa.runtime.settings import from_env
from proa.worker import launch
from proa.worker.canary import has_faults, has_foreign, probes_of
from proa.worker.package import pack
from proa.worker.settings import WorkerSettings

PORTS = launch.Ports(grpc=1, http=2, metrics=3)


def test_the_wheel_is_found_and_complete() -> None:
    wheel = launch.find_wheel()
    assert wheel.server.name == "tritonserver"
    assert os.access(wheel.server, os.X_OK)


def test_command_and_environment(tmp_path: Path) -> None:
    found = launch.prepare(
        tmp_path / "repo", tmp_path, PORTS, {"PATH": "/bin", "PYTHONPATH": "/mine"}, host="::1"
    )
    assert Path(found.command[0]).name == "tritonserver"
    assert f"--model-repository={tmp_path / 'repo'}" in found.command
    assert "--disable-auto-complete-config" in found.command
    assert f"--backend-config=python,shm-region-prefix-name={found.shm_prefix}" in found.command
    assert {"--grpc-port=1", "--http-port=2", "--metrics-port=3"} <= set(found.command)
    assert found.environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert found.environment["PYTHONPATH"].endswith(":/mine")
    assert "nvidia_pytriton.libs" in found.environment["LD_LIBRARY_PATH"]
    assert launch.MALLOC.items() <= found.environment.items()
    names = {path.name for path in (tmp_path / "backends/python").iterdir()}
    assert {
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    } <= names


def test_the_user_s_own_malloc_settings_stay(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "MALLOC_TRIM_THRESHOLD_": "1"}
    found = launch.prepare(tmp_path / "repo", tmp_path, PORTS, environ, host="::1")
    assert found.environment["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_packed_models_alone_take_few_threads(tmp_path: Path) -> None:
    few = f"--backend-config=python,thread-pool-size={launch.PACKED_THREADS}"
    for foreign in (True, False):
        found = launch.prepare(tmp_path / "repo", tmp_path, PORTS, {}, host="::1", foreign=foreign)
        assert (few in found.command) is not foreign


def test_an_installed_triton_is_used_as_it_is(tmp_path: Path) -> None:
    """As in Triton's own image: all its backends, its libraries, GPU metrics; nothing is copied."""
    folder = installed_triton(tmp_path / "tritonserver")
    found = launch.prepare(
        tmp_path / "repo", tmp_path, PORTS, {"PATH": "/bin"}, host="::1", installed=folder
    )
    assert found.command[0] == str(folder / "bin/tritonserver")
    assert f"--backend-directory={folder / 'backends'}" in found.command
    assert "--allow-gpu-metrics=true" in found.command
    assert found.environment["LD_LIBRARY_PATH"].startswith(str(folder / "lib"))
    assert "pytriton" not in " ".join(found.environment.values())
    assert not (tmp_path / "backends").exists()


@pytest.mark.parametrize(
    "part", ["bin/tritonserver", "backends/python/triton_python_backend_utils.py"]
)
def test_an_installed_triton_that_lacks_a_part(part: str, tmp_path: Path) -> None:
    folder = installed_triton(tmp_path / "tritonserver")
    (folder / part).unlink()
    with pytest.raises(EnvironmentLacks, match=f"PROA_WORKER_TRITON={folder}: {part} is missing"):
        launch.find_installed(folder)


def test_an_installed_triton_for_another_python(tmp_path: Path) -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = installed_triton(tmp_path / "tritonserver", python="3.10")
    with pytest.raises(EnvironmentLacks, match=f"is built for Python 3.10, this is {own}"):
        launch.find_installed(folder)


def test_a_scratch_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentLacks, match="make PROA_WORKER_SCRATCH a writable directory"):
        launch.prepare(tmp_path, tmp_path / "file", PORTS, {}, host="::1")


def test_leaked_regions_are_removed_and_others_are_not(tmp_path: Path) -> None:
    mine, other = launch.shm_prefix(tmp_path / "a"), launch.shm_prefix(tmp_path / "b")
    assert mine != other
    for prefix in (mine, mine, other):
        (tmp_path / f"{prefix}{len(list(tmp_path.iterdir()))}").touch()
    assert launch.clean_shm(mine, tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == [f"{other}2"]


def test_probes_are_zeros_for_every_program(tmp_path: Path) -> None:
    repository = pack(linear_model(tmp_path), tmp_path / "repo", faults=True)
    deployed, parity = probes_of(repository)
    assert (deployed.name, parity.name) == ("tiny/deployed", "tiny/parity.0")
    assert parity.request.parameters["proa.program"].string_param == "parity.0"
    assert parity.request.inputs[0].name == "parity.image"
    assert list(parity.request.inputs[0].shape) == [1, 1, 4, 4]
    assert parity.request.raw_input_contents[0] == bytes(64)
    assert has_faults(repository)
    assert not has_foreign(repository)


def test_a_program_in_two_roles_is_probed_once(tmp_path: Path) -> None:
    spec = linear_model(tmp_path)
    mean = replace(spec, redundancy=replace(spec.redundancy, coder="mean", parity={}))
    repository = pack(mean, tmp_path / "repo")
    assert [probe.name for probe in probes_of(repository)] == ["tiny/deployed"]
    assert not has_faults(repository)


THEIRS = """
max_batch_size: 2
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "ids" data_type: TYPE_INT64 dims: [ -1, 3 ] },
        { name: "hint" data_type: TYPE_FP32 dims: [ 1 ] optional: true } ]
"""


def test_a_model_of_the_users_is_probed_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.pbtxt").write_text(THEIRS)
    (probe,) = probes_of(tmp_path)
    assert has_foreign(tmp_path)
    shapes = [(t.name, t.datatype, list(t.shape)) for t in probe.request.inputs]
    assert shapes == [("text", "BYTES", [1, 1]), ("ids", "INT64", [1, 1, 3])]
    assert [len(raw) for raw in probe.request.raw_input_contents] == [4, 24]
    (tmp_path / "theirs/config.pbtxt").write_text("input [ {")
    with pytest.raises(ProgramRefused, match=r"theirs/config\.pbtxt"):
        probes_of(tmp_path)


def test_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="no model there; write one with `proa pack`"):
        probes_of(tmp_path)


def test_settings() -> None:
    found = from_env(
        WorkerSettings, {"PROA_WORKER_REPOSITORY": "repo", "PROA_WORKER_SERVICE_MS": "2.5"}
    )
    assert (found.repository, found.service_ms, found.port) == (Path("repo"), 2.5, 8001)
    with pytest.raises(SettingsError, match="PROA_WORKER_REPOSITORY is not set"):
        from_env(WorkerSettings, {})
    with pytest.raises(SettingsError, match="PROA_WORKER_SERVICE_MS='-1' is below the minimum"):
        from_env(WorkerSettings, {"PROA_WORKER_REPOSITORY": "r", "PROA_WORKER_SERVICE_MS": "-1"})


def test_the_main_process_does_without_torch() -> None:
    code = "import sys, proa.worker.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
