"""What a frontend reads in a worker's verdict, and how it counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2

from proa.frontend import load, verdicts
from proa.frontend.integrity import Integrity, IntegrityMetrics
from proa.frontend.verdicts import Verdict, read_verdict

CLEAN = (24, 0, 0, 1, 0.25, 1, -1, -1)


def tiled(row: Any, batch: int = 2) -> Any:
    return np.tile(np.array(row, np.float64), (batch, 1))


def read(**changed: float) -> Verdict | None:
    names = ("checks", "alarms", "repaired", "cleared", "ratio", "layer", "row", "column")
    return read_verdict(tiled([*({**dict(zip(names, CLEAN, strict=True)), **changed}).values()]))


def test_a_clean_answer_is_ok():
    assert read() == Verdict(24, 0, 0, 0.25, 1, -1, -1)
    assert read().status == "ok"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("alarms", "repaired", "ratio", "status", "near"),
    [
        (0, 0, 1.5, "ok", False), (1, 1, 1.9, "repaired", True), (1, 1, 2.0, "repaired", False),
        (3, 3, math.inf, "repaired", False), (1, 1, math.nan, "repaired", False),
        (3, 2, 1.1, "failed", False), (1, 0, math.inf, "failed", False),
    ],
)  # fmt: skip
def test_what_alarms_make_of_it(alarms: int, repaired: int, ratio: float, status: str, near: bool):
    found = read(alarms=alarms, repaired=repaired, ratio=ratio)
    assert found is not None
    assert (found.status, found.near) == (status, near)


@pytest.mark.parametrize(
    "changed",
    [
        {"checks": -1}, {"checks": 1e13}, {"checks": 0.5}, {"checks": math.nan},
        {"alarms": 25}, {"alarms": math.inf}, {"repaired": 1}, {"cleared": math.nan},
        {"ratio": -0.1}, {"ratio": -math.inf}, {"layer": -2}, {"row": math.nan}, {"column": 0.1},
    ],
)  # fmt: skip
def test_numbers_that_are_no_verdict(changed: dict[str, float]):
    assert read(**changed) is None


@pytest.mark.parametrize(
    "array",
    [
        None, "verdict", [], tiled(CLEAN).astype(np.float32), tiled(CLEAN)[:, :7], tiled(CLEAN)[0],
        np.zeros((0, 8)), np.zeros((2, 8, 1)), np.full((2, 8), b"x", object),
    ],
    ids=repr,
)  # fmt: skip
def test_arrays_that_are_no_verdict(array: Any):
    assert read_verdict(array) is None


def test_it_is_asked_for_beside_the_load():
    request = service_pb2.ModelInferRequest(
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="logits")]
    ).SerializeToString()
    found = service_pb2.ModelInferRequest.FromString(request + load.ASK + verdicts.ASK)
    assert [one.name for one in found.outputs] == ["logits", "proa.load", "proa.abft"]


class Counted:
    """An Integrity, its metrics, and whom it told of faults."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.told: list[str] = []
        self.integrity = Integrity("m", IntegrityMetrics(self.registry), on_fault=self.told.append)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model": "m", **labels})

    def faults(self, kind: str) -> float | None:
        return self.metric("proa_abft_faults_total", worker="w", kind=kind)


def test_series_begin_at_zero():
    counted = Counted()
    counted.integrity.expect("w")
    assert counted.metric("proa_abft_checks_total", worker="w") == 0
    assert [counted.faults(kind) for kind in ("repaired", "failed", "near")] == [0, 0, 0]
    assert counted.metric("proa_abft_quarantine_capped_total") == 0


def test_what_counts_against_a_worker_and_what_does_not():
    counted = Counted()
    for verdict in (
        Verdict(8, 0, 0, 0.3, 0, -1, -1),
        Verdict(8, 1, 1, 1.5, 0, 2, 3),  # near
        Verdict(8, 1, 1, math.inf, 0, 2, 3),
        Verdict(8, 2, 1, math.nan, 0, 2, 3),
    ):
        counted.integrity.take("w", verdict)
    assert counted.told == ["w", "w"]
    assert counted.metric("proa_abft_checks_total", worker="w") == 32
    assert [counted.faults(kind) for kind in ("repaired", "failed", "near")] == [1, 1, 1]
    assert counted.metric("proa_abft_residual_ratio_count") == 4
    total = counted.metric("proa_abft_residual_ratio_sum")
    assert total is not None
    assert math.isfinite(total)
    assert counted.integrity.tallies["w"].faults == 2


def test_a_worker_that_is_gone_leaves_no_series():
    counted = Counted()
    counted.integrity.fault("w", "failed")
    counted.integrity.forget("w")
    counted.integrity.forget("w")
    assert counted.faults("failed") is None
    assert counted.metric("proa_abft_checks_total", worker="w") is None


def test_counts_go_on_in_a_new_version_of_the_model():
    counted = Counted()
    metrics = IntegrityMetrics(CollectorRegistry())
    counted.integrity.fault("w", "repaired")
    later = Integrity("m", metrics, before=counted.integrity)
    assert later.tallies["w"].faults == 1
