"""How much of a worker's time others use, from what the worker says of itself.

A worker reports with an answer how many computations it has finished since its start, and for how
long it was busy with them. What this frontend did not ask for was done for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from proa.spec.reports import LOAD

OUTPUT = LOAD.name
# Appended to a serialised ModelInferRequest it asks for that output too: protobuf joins repeated
# fields, so a request is written once for workers with and without load reports.
ASK: bytes = service_pb2.ModelInferRequest(
    outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)]
).SerializeToString()
# The share is averaged over about so long.
TAU_S = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """`finished` computations and `busy_us` since the worker's start; `at`: our clock, seconds."""

    finished: int
    busy_us: int
    at: float


def read_report(array: Any, at: float) -> Report | None:
    """What output OUTPUT (INT64 [batch, 2], equal rows) says; None where it is nothing like that:
    a prediction is not worth less for it."""
    if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.shape[1:] != (2,):
        return None
    if len(array) == 0 or (array < 0).any():
        return None
    return Report(int(array[0, 0]), int(array[0, 1]), at)


class LoadMeter:
    """The share of one worker's time that others use, 0 to 1.

    Our own computations are counted when they are sent. A worker computes in the order in which it
    was asked, so what a report has not counted by then was sent later or will never be computed
    (an error, a cancellation, an encoder that did not get there). Parity behind an encoder counts
    just the same, though only its end is seen here.

    Only durations are taken from the worker, and only our own clock dates the reports.
    `restarts`: how often a new process took the worker's place, as far as reports tell.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.restarts = 0
        self._running = 0
        self._unseen = 0
        self._last: Report | None = None

    @contextmanager
    def own(self) -> Iterator[None]:
        """A computation for us, from before it is sent until it has ended."""
        self._running += 1
        self._unseen += 1
        try:
            yield
        finally:
            self._running -= 1

    def take(self, report: Report, sent_at: float) -> None:
        """The worker's report with the answer to a request of `sent_at`, while that is `own`."""
        last = self._last
        if last is not None and report.finished <= last.finished and sent_at < last.at:
            return  # overtaken by a later one
        self._last = report
        new = report.finished - last.finished if last is not None else 0
        self.restarts += new < 0 or (last is not None and report.busy_us < last.busy_us)
        own = min(max(new, 0), self._unseen)
        self._unseen = min(self._unseen - own, self._running - 1)
        if last is None or new <= 0 or report.busy_us < last.busy_us:
            self.share = 0.0  # the first one, or the first of a new process
            return
        elapsed_s = report.at - last.at
        if elapsed_s <= 0:
            return
        used = (new - own) / new * (report.busy_us - last.busy_us) / 1e6 / elapsed_s
        weight = -math.expm1(-elapsed_s / TAU_S)
        self.share = min(1.0, self.share + weight * (used - self.share))
