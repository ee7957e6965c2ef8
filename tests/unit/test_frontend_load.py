"""What a frontend makes of the load reports of a worker."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from proa.frontend import load
from proa.frontend.load import TAU_S, LoadMeter, Report, read_report

SERVICE_US = 20_000


class Worker:
    """A worker and a clock; others and this frontend use it one after the other."""

    def __init__(self) -> None:
        self.meter = LoadMeter()
        self.now = 0.0
        self.finished = 0
        self.busy_us = 0

    def compute(self, count: int = 1, *, idle_s: float = 0.0) -> None:
        self.finished += count
        self.busy_us += count * SERVICE_US
        self.now += count * SERVICE_US / 1e6 + idle_s

    def report(self) -> Report:
        return Report(self.finished, self.busy_us, self.now)

    def ask(self, *, others: int = 0, idle_s: float = 0.0, parity: int = 0) -> float:
        """One query of ours, after so much work for others, and after parity rows of ours."""
        for _ in range(parity):
            with self.meter.own():
                self.compute()
        self.compute(others, idle_s=idle_s)
        sent_at = self.now
        with self.meter.own():
            self.compute()
            self.meter.take(self.report(), sent_at)
        return self.meter.share


def test_a_worker_all_for_ourselves_has_no_foreign_load():
    worker = Worker()
    assert {worker.ask(parity=i % 3) for i in range(50)} == {0.0}


def test_what_others_use_is_their_share_of_the_time():
    worker = Worker()
    for _ in range(200):
        share = worker.ask(others=2, idle_s=0.020, parity=1)
    assert share == pytest.approx(0.4, abs=0.01)  # of 100 ms: own 2, others 2, idle 1
    for _ in range(200):
        share = worker.ask()
    assert share < 0.02


def test_after_a_long_silence_only_the_news_counts():
    worker = Worker()
    worker.ask()
    assert worker.ask(others=100, idle_s=18.0) == pytest.approx(2.0 / 20.02, rel=0.01)


def test_a_short_time_weighs_little():
    worker = Worker()
    worker.ask()
    assert worker.ask(others=1) == pytest.approx(0.5 * -math.expm1(-0.04 / TAU_S))


def test_a_new_process_begins_anew():
    worker = Worker()
    for _ in range(50):
        worker.ask(others=3)
    worker.finished = worker.busy_us = 0
    assert worker.ask(others=3) == 0.0
    assert worker.ask(others=3) > 0.0


def test_attempts_that_were_never_computed_hide_one_report_at_most():
    worker = Worker()
    worker.ask()
    for _ in range(10):
        with worker.meter.own():  # refused, or cancelled while it waited
            pass
    assert worker.ask(others=5) == 0.0
    assert worker.ask(others=5) > 0.0


def test_own_work_behind_the_query_is_not_taken_for_that_of_others():
    worker = Worker()
    worker.ask()
    with worker.meter.own():  # waits at the worker while the query before it is answered
        sent_at = worker.now
        with worker.meter.own():
            worker.compute()
            worker.meter.take(worker.report(), sent_at)
        worker.compute()
    assert worker.ask() == 0.0


def test_a_report_that_was_overtaken_is_ignored():
    worker = Worker()
    worker.ask()
    with worker.meter.own(), worker.meter.own():
        sent_at = worker.now
        worker.compute()
        first = worker.report()
        worker.compute()
        worker.meter.take(worker.report(), sent_at)
        worker.meter.take(first, sent_at)
    assert worker.ask() == 0.0


def test_nonsense_stays_within_limits():
    worker = Worker()
    worker.ask()
    with worker.meter.own():
        worker.meter.take(Report(1 << 62, 1 << 62, worker.now + 1.0), worker.now)
    assert worker.meter.share == 1.0


@pytest.mark.parametrize(
    "array",
    [
        None,
        np.zeros((1, 2), np.int32),
        np.zeros((1, 3), np.int64),
        np.zeros((0, 2), np.int64),
        np.zeros(2, np.int64),
        np.full((1, 2), -1, np.int64),
    ],
)
def test_what_is_no_report(array):
    assert read_report(array, 1.0) is None


def test_a_report_is_read_from_any_row():
    assert read_report(np.array([[3, 70], [3, 70]], np.int64), 1.5) == Report(3, 70, 1.5)


def test_asking_is_appended_to_a_request():
    request = service_pb2.ModelInferRequest(
        model_name="m", outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="y")]
    )
    joined = service_pb2.ModelInferRequest.FromString(request.SerializeToString() + load.ASK)
    assert joined.model_name == "m"
    assert [output.name for output in joined.outputs] == ["y", "proa.load"]
