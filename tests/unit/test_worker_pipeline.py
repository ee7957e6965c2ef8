"""Jobs through the worker's pipeline: one at a time, in order, finished beside the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from proa.worker.pipeline import Pipeline

WAIT_S = 10.0


class Stages:
    """Stages that wait for a word, and note who did what."""

    def __init__(self, *, fails: frozenset[int] = frozenset()) -> None:
        self.begun = {job: threading.Event() for job in range(10)}
        self.go = {job: threading.Event() for job in range(10)}
        self.threads: dict[int, str] = {}
        self.finished: list[int] = []
        self.done = threading.Semaphore(0)
        self.computing = 0
        self._fails = fails
        self.pipeline: Pipeline[int] = Pipeline(self._compute, self._finish)

    def _compute(self, job: int) -> bool:
        self.computing += 1
        assert self.computing == 1
        self.begun[job].set()
        assert self.go[job].wait(WAIT_S)
        self.computing -= 1
        return job not in self._fails

    def _finish(self, job: int) -> None:
        self.threads[job] = threading.current_thread().name
        self.finished.append(job)
        self.done.release()


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as found:
        yield found


def test_a_lone_job_stays_on_one_thread() -> None:
    stages = Stages()
    assert stages.pipeline.idle()
    stages.pipeline.put(0)
    assert stages.begun[0].wait(WAIT_S)
    assert not stages.pipeline.idle()
    stages.go[0].set()
    assert stages.done.acquire(timeout=WAIT_S)
    assert stages.threads == {0: "compute"}
    stages.pipeline.close(WAIT_S)
    assert stages.pipeline.idle()


def test_the_next_is_computed_while_the_last_is_finished() -> None:
    stages = Stages()
    stages.pipeline.put(0)
    assert stages.begun[0].wait(WAIT_S)
    stages.pipeline.put(1)
    stages.go[0].set()
    assert stages.begun[1].wait(WAIT_S)
    assert stages.done.acquire(timeout=WAIT_S)
    assert stages.threads == {0: "finish"}
    stages.go[1].set()
    stages.pipeline.close(WAIT_S)
    assert stages.finished == [0, 1]


def test_only_one_waits(elsewhere: ThreadPoolExecutor) -> None:
    stages = Stages()
    stages.pipeline.put(0)
    assert stages.begun[0].wait(WAIT_S)
    stages.pipeline.put(1)
    third: Future[None] = elsewhere.submit(stages.pipeline.put, 2)
    with pytest.raises(FutureTimeout):
        third.result(0.1)
    stages.go[0].set()
    third.result(WAIT_S)
    for job in (1, 2):
        stages.go[job].set()
    stages.pipeline.close(WAIT_S)
    assert sorted(stages.finished) == [0, 1, 2]


def test_when_the_turn_of_a_waiting_job_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stages = Stages(fails=frozenset({1}))
    assert stages.pipeline.left_s() == 0.0
    for job, seconds in ((0, 5.0), (1, 1.0)):
        stages.pipeline.put(job)
        assert stages.begun[job].wait(WAIT_S)
        clock[0] += seconds
        stages.go[job].set()
    assert stages.done.acquire(timeout=WAIT_S)
    stages.pipeline.put(2)
    assert stages.begun[2].wait(WAIT_S)
    assert stages.pipeline.left_s() == 5.0  # what failed says nothing
    clock[0] += 2.0
    assert stages.pipeline.left_s() == 3.0
    clock[0] += 4.0
    assert stages.pipeline.left_s() == 0.0
    stages.go[2].set()
    stages.pipeline.close(WAIT_S)


def test_whether_a_job_still_waits() -> None:
    stages = Stages()
    stages.pipeline.put(0)
    assert stages.begun[0].wait(WAIT_S)
    assert stages.pipeline.taken_within(0.0)
    stages.pipeline.put(1)
    assert not stages.pipeline.taken_within(0.01)
    stages.go[0].set()
    assert stages.pipeline.taken_within(WAIT_S)
    stages.go[1].set()
    stages.pipeline.close(WAIT_S)
    assert stages.pipeline.idle()


def test_what_is_not_computed_is_not_finished() -> None:
    stages = Stages(fails=frozenset({0}))
    for job in (0, 1):
        stages.go[job].set()
        stages.pipeline.put(job)
    stages.pipeline.close(WAIT_S)
    assert stages.finished == [1]


def test_close_waits_for_what_was_put() -> None:
    stages = Stages()
    for job in range(2):
        stages.pipeline.put(job)
    closing = threading.Thread(target=stages.pipeline.close, args=(WAIT_S,))
    closing.start()
    assert stages.finished == []
    for job in range(2):
        stages.go[job].set()
    closing.join(WAIT_S)
    assert sorted(stages.finished) == [0, 1]


def test_close_gives_up_on_what_is_stuck() -> None:
    stages = Stages()
    stages.pipeline.put(0)
    stages.pipeline.close(0.05)
    assert stages.finished == []
    stages.go[0].set()
    assert stages.done.acquire(timeout=WAIT_S)


def test_both_threads_are_prepared() -> None:
    prepared: list[str] = []
    done = threading.Event()
    pipeline: Pipeline[int] = Pipeline(
        lambda _: True,
        lambda _: done.set(),
        begin=lambda: prepared.append(threading.current_thread().name),
    )
    pipeline.put(0)
    assert done.wait(WAIT_S)
    pipeline.close(WAIT_S)
    assert sorted(prepared) == ["compute", "finish"]
