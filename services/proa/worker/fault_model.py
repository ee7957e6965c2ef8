"""The Triton model `proa_faults`: writes the fault record that the other models read.

Input `request`: UINT8 [n], a serialized proa.api.v1.FaultRequest. Output `reply`: UINT8 [m], a
FaultReply with the faults that are active afterwards. In a repository only when it was packed with
faults=True.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from proa.errors import ProaError
from proa.worker.fault_messages import apply
from proa.worker.faults import FaultRecord

log = logging.getLogger(__name__)


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, _args: dict[str, str]) -> None:
        self._record = FaultRecord(Path(os.environ["PROA_WORKER_SCRATCH"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._record.close()

    def _answer(self, request: Any) -> Any:
        try:
            found = pb_utils.get_input_tensor_by_name(request, "request")
            reply = apply(self._record, found.as_numpy().tobytes())
        except ProaError as exc:
            codes = {"INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG}
            return _failure(str(exc), codes.get(exc.status, pb_utils.TritonError.UNAVAILABLE))
        except Exception as exc:
            log.exception("a fault request failed")
            return _failure(f"{type(exc).__name__} in {__name__}", pb_utils.TritonError.INTERNAL)
        output = pb_utils.Tensor("reply", np.frombuffer(reply, np.uint8))
        return pb_utils.InferenceResponse(output_tensors=[output])


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
