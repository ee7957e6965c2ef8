"""A protected model behind a real tritonserver: faults in its products, and what clients see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.eventually import eventually_sync
from fakes.programs import INPUT, Perceptron, coded_model, export
from fakes.worker_process import WorkerProcess
from proa.api.v1 import faults_pb2
from proa.spec import ProtectionSpec
from proa.worker.package import pack

pytestmark = pytest.mark.triton

Array = NDArray[Any]
# Of a verdict's summary: see docs/abft.md.
CHECKS, ALARMS, REPAIRED = range(3)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Hosts `correct`, `detect` and `answer`, which detects: the same network, protected so."""
    folder = tmp_path_factory.mktemp("worker")
    network = export(Perceptron(), folder / "network.pt2")
    for name, protection in (
        ("correct", ProtectionSpec("correct")),
        ("detect", ProtectionSpec("detect")),
        ("answer", ProtectionSpec("detect", on_fault="answer")),
    ):
        spec = coded_model(folder, network, name=name)
        pack(replace(spec, protection=protection), folder / "repo", faults=True)
    with WorkerProcess(folder / "repo", folder, CANARY_S="600") as found:
        yield found


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(worker.address) as found:
        yield found
        inject(found, clear=faults_pb2.ClearRequest())


def tensor(name: str, value: Array) -> triton.InferInput:
    found = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    found.set_data_from_numpy(value)
    return found


def queries() -> Array:
    rng = np.random.default_rng(5)
    return rng.standard_normal((2, *INPUT.shape), dtype=np.float32)


def ask(client: Any, model: str) -> tuple[Array, Array | None]:
    """The answer to two queries, and the worker's report."""
    answer = client.infer(model, [tensor("image", queries())])
    return answer.as_numpy("logits"), answer.as_numpy("proa.abft")


def inject(client: Any, **op: Any) -> list[faults_pb2.Fault]:
    request = faults_pb2.FaultRequest(**op).SerializeToString()
    answer = client.infer("proa_faults", [tensor("request", np.frombuffer(request, np.uint8))])
    return list(faults_pb2.FaultReply.FromString(answer.as_numpy("reply").tobytes()).active)


def flips(site: faults_pb2.FaultSite, ttl_ms: int = 60_000) -> dict[str, Any]:
    """As many bits as one fault may flip: of a small tensor, all."""
    made = faults_pb2.Fault(
        id="flips", kind=faults_pb2.BITFLIP, site=site, bits=4096, ttl_ms=ttl_ms
    )
    return {"inject": faults_pb2.InjectRequest(fault=made)}


def test_clean_answers_come_with_a_clean_report(client: Any) -> None:
    with torch.no_grad():
        expected = Perceptron()(torch.from_numpy(queries())).numpy()
    for model in ("correct", "detect"):
        answer, report = ask(client, model)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
        assert report is not None
        assert (report.dtype, report.shape) == (np.float64, (2, 8))
        np.testing.assert_array_equal(report[0], report[1])
        assert report[0, CHECKS : REPAIRED + 1].tolist() == [6.0, 0.0, 0.0]


def test_a_fault_in_an_accumulator_is_repaired(client: Any) -> None:
    clean, _ = ask(client, "correct")
    inject(client, **flips(faults_pb2.ACTIVATION))
    for _ in range(5):
        answer, report = ask(client, "correct")
        np.testing.assert_array_equal(answer, clean)
        assert report is not None
        assert report[0, ALARMS] == report[0, REPAIRED] > 0


def test_detect_fails_the_request_and_names_the_layer(client: Any) -> None:
    inject(client, **flips(faults_pb2.ACTIVATION))
    with pytest.raises(InferenceServerException) as caught:
        ask(client, "detect")
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message().startswith("silent data corruption in layer ")
    assert "not repaired" in caught.value.message()
    inject(client, clear=faults_pb2.ClearRequest())
    _, report = ask(client, "detect")
    assert report is not None
    assert report[0, ALARMS] == 0


def test_a_wrong_answer_is_sent_where_the_spec_wants_it(client: Any) -> None:
    clean, _ = ask(client, "answer")
    inject(client, **flips(faults_pb2.ACTIVATION))
    wrong, report = ask(client, "answer")
    assert not np.array_equal(wrong, clean)
    assert report is not None
    assert report[0, ALARMS] > report[0, REPAIRED] == 0


def test_weights_that_change_in_memory(client: Any) -> None:
    """A recomputation has the same weights: it repairs nothing."""
    clean, _ = ask(client, "correct")
    inject(client, **flips(faults_pb2.WEIGHT))
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=r"in layer (first|second) ") as caught:
            ask(client, "correct")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    inject(client, clear=faults_pb2.ClearRequest())
    np.testing.assert_array_equal(ask(client, "correct")[0], clean)


def test_a_fault_in_memory_ends_by_itself(client: Any) -> None:
    clean, _ = ask(client, "correct")
    inject(client, **flips(faults_pb2.WEIGHT, ttl_ms=1500))
    with pytest.raises(InferenceServerException, match="silent data corruption"):
        ask(client, "correct")
    eventually_sync(lambda: not inject(client, list=faults_pb2.ListRequest()))
    np.testing.assert_array_equal(ask(client, "correct")[0], clean)


def test_nothing_was_logged_as_unexpected(worker: WorkerProcess) -> None:
    assert "Traceback" not in Path(worker.log).read_text()
    assert worker.ready()
