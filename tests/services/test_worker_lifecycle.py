"""Start, sickness and death of a worker; with a model of the user's own, which needs no torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from fakes.eventually import eventually_sync
from fakes.installed_triton import installed_triton
from fakes.worker_process import WorkerProcess
from proa.worker.launch import SHM, shm_prefix

pytestmark = pytest.mark.triton

CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
MODEL = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([
                pb.Tensor("y", pb.get_input_tensor_by_name(request, "x").as_numpy() * 2)
            ])
            for request in requests
        ]
"""
SERVER, STUB = "tritonserver", "triton_python_backend_stub"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo" / "double"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(MODEL)
    return tmp_path / "repo"


def test_sigterm_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    with WorkerProcess(repository, tmp_path) as worker:
        assert triton.InferenceServerClient(worker.address).is_model_ready("double")
        assert len(worker.processes(STUB)) == 1
        second = WorkerProcess(repository, tmp_path).start()
        assert second.process is not None
        assert second.process.wait(30) == 1
        assert "is in use by another worker" in worker.log.read_text()
        assert worker.ready()
        assert worker.stop() == 0
    assert worker.processes(SERVER) + worker.processes(STUB) == []
    assert worker.left_over() == []


def test_an_installed_triton_serves(repository: Path, tmp_path: Path) -> None:
    """Triton's own image in place of the wheel, made from the wheel's parts."""
    folder = installed_triton(tmp_path / "tritonserver")
    with WorkerProcess(repository, tmp_path, TRITON=str(folder)) as worker:
        client = triton.InferenceServerClient(worker.address)
        query = triton.InferInput("x", [1, 2], "FP32")
        query.set_data_from_numpy(np.ones((1, 2), np.float32))
        assert client.infer("double", [query]).as_numpy("y").tolist() == [[2.0, 2.0]]
        assert worker.stop() == 0
    assert worker.left_over() == []


def test_a_draining_worker_serves_on_until_it_is_told_again(
    repository: Path, tmp_path: Path
) -> None:
    with WorkerProcess(repository, tmp_path, DRAIN_S="600") as worker:
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        eventually_sync(lambda: worker.page("readyz") == (503, "draining\n"))
        assert worker.page("livez")[0] == 200
        client = triton.InferenceServerClient(worker.address)
        data = triton.InferInput("x", [1, 2], "FP32")
        data.set_data_from_numpy(np.ones((1, 2), np.float32))
        assert client.infer("double", [data]).as_numpy("y").tolist() == [[2.0, 2.0]]
        assert worker.stop() == 0
    assert worker.left_over() == []


def test_sigkill_takes_triton_along_and_the_next_start_sweeps(
    repository: Path, tmp_path: Path
) -> None:
    with WorkerProcess(repository, tmp_path) as worker:
        assert worker.process is not None
        worker.process.kill()
        worker.process.wait()
        eventually_sync(lambda: not worker.processes(SERVER) + worker.processes(STUB))
        # Triton leaks its shared memory now and then; make sure that it did.
        (SHM / f"{shm_prefix(worker.scratch)}leaked").touch()
    with WorkerProcess(repository, tmp_path) as worker:
        assert "removed shared memory of a killed worker" in worker.log.read_text()
        assert worker.stop() == 0
    assert worker.left_over() == []


def test_a_dead_stub_is_noticed_and_ends_the_worker(repository: Path, tmp_path: Path) -> None:
    """Triton's own readiness stays true over a dead stub."""
    with WorkerProcess(repository, tmp_path, CANARY_S="0.1") as worker:
        assert worker.process is not None
        (stub,) = worker.processes(STUB)
        os.kill(stub, signal.SIGKILL)
        eventually_sync(lambda: worker.page("readyz")[0] == 503)
        assert "Stub process" in worker.page("readyz")[1]
        assert triton.InferenceServerClient(worker.address).is_model_ready("double")
        assert worker.process.wait(30) == 1
    assert "the canary failed 3 times in a row" in worker.log.read_text()
    assert worker.processes(SERVER) == []
    assert worker.left_over() == []


def test_a_dead_server_ends_the_worker(repository: Path, tmp_path: Path) -> None:
    with WorkerProcess(repository, tmp_path) as worker:
        assert worker.process is not None
        (server,) = worker.processes(SERVER)
        os.kill(server, signal.SIGKILL)
        assert worker.process.wait(30) == 1
    assert "tritonserver ended with signal 9" in worker.log.read_text()
    assert worker.left_over() == []


def test_a_model_that_cannot_be_loaded(repository: Path, tmp_path: Path) -> None:
    (repository / "double/1/model.py").write_text("import absent")
    worker = WorkerProcess(repository, tmp_path).start()
    assert worker.process is not None
    assert worker.process.wait(30) == 1
    log = worker.log.read_text()
    assert "No module named 'absent'" in log
    assert "tritonserver ended with exit code 1; its log is above" in log
    assert worker.left_over() == []
