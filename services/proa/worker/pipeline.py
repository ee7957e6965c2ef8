"""What a worker does at once: take in the next request, compute one, send the last answer off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Pipeline(Generic[Job]):
    """Computes jobs one at a time, in their order, on a thread of its own.

    compute(job): whether there is something to finish. finish(job): what comes after, on the same
    thread where no job waits, else on another, beside the next computation. begin(): what each of
    the two does first. None of them may raise.
    """

    def __init__(
        self,
        compute: Callable[[Job], bool],
        finish: Callable[[Job], object],
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._begin = begin
        self._compute = compute
        self._finish = finish
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._computed: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._room = threading.Lock()  # held while a job waits
        self._computing = False
        self._began, self._took_s = 0.0, 0.0
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("compute", self._compute_all), ("finish", self._finish_all))
        ]
        for thread in self._threads:
            thread.start()

    def idle(self) -> bool:
        """Whether a job that is put now is computed at once."""
        return not self._computing and not self._room.locked()

    def put(self, job: Job) -> None:
        """Have `job` computed. Returns once it may wait: only one does."""
        self._room.acquire()
        self._waiting.put(job)

    def left_s(self) -> float:
        """Seconds until the computation that runs ends, if it takes as long as the last did."""
        return max(0.0, self._began + self._took_s - time.monotonic())

    def taken_within(self, timeout_s: float) -> bool:
        """Whether no job waits, at the latest after `timeout_s`. For the thread that puts jobs."""
        taken = self._room.acquire(timeout=timeout_s)
        if taken:
            self._room.release()
        return taken

    def close(self, timeout_s: float) -> None:
        """Returns once all that was put is finished, or after `timeout_s` for each thread."""
        self._waiting.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _compute_all(self) -> None:
        self._begin()
        while (job := self._waiting.get()) is not None:
            self._computing, self._began = True, time.monotonic()
            self._room.release()
            if self._compute(job):
                self._took_s = time.monotonic() - self._began
                if self._waiting.empty():
                    self._finish(job)
                else:
                    self._computed.put(job)
            self._computing = False
        self._computed.put(None)

    def _finish_all(self) -> None:
        self._begin()
        while (job := self._computed.get()) is not None:
            self._finish(job)
