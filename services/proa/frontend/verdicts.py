"""What a worker says of its own arithmetic: the verdict that comes with an answer.

A worker whose program checks its matrix products (docs/abft.md) has an output for it. A verdict
that cannot be read is none: the prediction is not worth less for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from proa.spec.reports import ABFT, CORRUPTION

OUTPUT, (WIDTH,) = ABFT.name, ABFT.shape
# Appended to a serialised ModelInferRequest it asks for that output too, as `load.ASK`.
ASK: bytes = service_pb2.ModelInferRequest(
    outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)]
).SerializeToString()
# More checks than any answer takes: a count above it is none.
COUNT_MAX = 1e12
# Repaired, and so near the limit that it may have been rounding: it does not count as a fault.
NEAR_RATIO_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The summary over all checked layers. `ratio`: worst residual over its limit; may be NaN or
    Inf. `layer`, `row`, `column`: where the first alarm was; -1 where that cannot be told."""

    checks: int
    alarms: int
    repaired: int
    ratio: float
    layer: int
    row: int
    column: int

    @property
    def status(self) -> str:
        """`ok`, `repaired` or `failed`: the response parameter `proa.abft`."""
        if self.alarms > self.repaired:
            return "failed"
        return "repaired" if self.alarms else "ok"

    @property
    def near(self) -> bool:
        """Whether a repaired alarm may have been mere rounding."""
        return self.status == "repaired" and self.ratio < NEAR_RATIO_MAX

    @property
    def text(self) -> str:
        """What a worker says that refuses such an answer."""
        return (
            f"{CORRUPTION} in layer {self.layer} (row {self.row}, column {self.column}),"
            " not repaired"
        )


def read_verdict(array: Any) -> Verdict | None:
    """What output OUTPUT (FP64 [batch, 8], equal rows) says; None where it is nothing like that."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float64:
        return None
    if array.shape[1:] != (WIDTH,) or len(array) == 0:
        return None
    checks, alarms, repaired, cleared, ratio, layer, row, column = (float(x) for x in array[0])
    counts, places = (checks, alarms, repaired, cleared), (layer, row, column)
    if not all(_whole(x) and x >= 0 for x in counts) or not all(
        _whole(x) and x >= -1 for x in places
    ):
        return None
    if repaired > alarms or alarms > checks or ratio < 0:
        return None
    return Verdict(
        int(checks), int(alarms), int(repaired), ratio, int(layer), int(row), int(column)
    )


def _whole(value: float) -> bool:
    # NaN and Inf compare as neither.
    return abs(value) <= COUNT_MAX and value.is_integer()
