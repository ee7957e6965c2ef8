"""The Triton Python backend of a packed model. `model.py` in the repository imports it.

One process, one computation at a time: deployed and parity programs share it, so that redundant
work competes with queries as it does on a GPU. While one is computed, the next request is taken in
and the last answer sent off (pipeline.py). Every request is answered by a response or by a
TritonError with a clear message; no traceback leaves this module (it would show paths).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from proa.errors import BadAnswer, InvalidRequest, ProaError, RequestCancelled, Unavailable
from proa.spec.reports import ABFT, LOAD
from proa.worker import faults
from proa.worker.bitflips import BitFlips
from proa.worker.faults import Fault, FaultKind
from proa.worker.manifest import PACKAGE_FILE, Package, ProgramSignature
from proa.worker.pipeline import Pipeline
from proa.worker.programs import DTYPES, Program, load
from proa.worker.protection import (
    Outputs,
    check_device,
    refuse_corrupt,
    split_verdict,
    verdict_report,
)
from proa.worker.spans import compute_span, open_compute

log = logging.getLogger(__name__)

# Names of Triton's error codes; the stub fills pb_utils only after this module is imported.
_CODES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNAVAILABLE": "UNAVAILABLE", "CANCELLED": "CANCELLED"}
_HOLDING = (FaultKind.DELAY, FaultKind.PAUSE)
FINISH_S = 5.0  # for what is computed when Triton unloads the model
# How long before its turn a waiting request is looked at. The frontend takes no tied query back
# from a worker that is three ways (milliseconds) from an answer; a later cancel may be in vain.
LOOK_AHEAD_S = 0.003


@dataclass(slots=True)
class _Job:
    """A request on its way through the worker. `waits`: it came while another one computed;
    `looked_at`: when Triton was asked whether it is `cancelled`, which it must not be once it is
    `answered`: the request is gone then (`lock`). `load`: computations finished and microseconds
    busy, by the end of its own."""

    request: Any
    sender: Any
    waits: bool
    cancelled: bool = False
    looked_at: float = 0.0
    answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    program: str = ""
    wanted: Set[str] = frozenset()
    inputs: Sequence[torch.Tensor] = ()
    outputs: Outputs = ()
    verdict: torch.Tensor | None = None
    load: tuple[int, int] = (0, 0)


class _Dropped(Exception):
    """An injected fault: the request is never answered."""


class TritonPythonModel:
    """What Triton calls. Programs are those of `package.json` beside the model file."""

    def initialize(self, args: dict[str, str]) -> None:
        threads = int(os.environ.get("PROA_WORKER_THREADS", "1"))
        torch.set_num_threads(threads)
        self._service_s = float(os.environ.get("PROA_WORKER_SERVICE_MS", "0")) / 1000.0
        folder = Path(args["model_repository"]) / args["model_version"]
        self._package = Package.read(folder / PACKAGE_FILE)
        on_gpu = args.get("model_instance_kind") == "GPU"
        self._device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        check_device(self._package.coverage, self._device)
        self._signatures = self._package.signatures()
        self._layers = self._package.layers()
        self._programs = self._load(folder)
        self._record = _record()
        active = self._record.active if self._record else tuple
        self._injector = faults.Injector(active)
        self._bitflips = BitFlips(active)
        self._finished = 0
        self._busy_s = 0.0
        self._tracing = open_compute(os.environ)
        self._pipeline: Pipeline[_Job] = Pipeline(
            lambda job: _did(self._compute, job),
            lambda job: _did(self._reply, job),
            # OpenMP keeps this for each thread, and convolutions do not look at torch's own.
            begin=lambda: torch.set_num_threads(threads),
        )
        # torch and the programs stay: a collection that looks at them takes 70 ms from a request.
        gc.collect()
        gc.freeze()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            job = _Job(request, request.get_response_sender(), waits=not self._pipeline.idle())
            if _did(self._take, job):
                self._pipeline.put(job)
                if job.waits:
                    self._look_ahead(job)

    def finalize(self) -> None:
        self._pipeline.close(FINISH_S)
        if self._record:
            self._record.close()
        if self._tracing:
            self._tracing.close(timeout_s=1.0)
        gc.unfreeze()  # what is never collected, extensions of torch call a leak

    def _load(self, folder: Path) -> dict[str, Program]:
        by_hash: dict[str, Program] = {}
        for ref in self._package.programs.values():
            if ref.sha256 not in by_hash:
                by_hash[ref.sha256] = load(folder / ref.file, ref.sha256, device=self._device)
        return {name: by_hash[ref.sha256] for name, ref in self._package.programs.items()}

    def _take(self, job: _Job) -> None:
        """Read and check the request."""
        request = job.request
        job.parameters = json.loads(request.parameters() or "{}")
        job.program = job.parameters.get("proa.program", "deployed")
        if job.program not in self._signatures:
            known = ", ".join(self._signatures)
            raise InvalidRequest(
                f"proa.program={str(job.program)[:80]!r} is not hosted here; it hosts {known}"
            )
        signature = self._signatures[job.program]
        job.wanted = _wanted(request, signature)
        job.inputs = self._inputs(request, signature)

    def _look_ahead(self, job: _Job) -> None:
        """Ask shortly before its turn whether a waiting job is cancelled: Triton takes as long to
        say so as a small program to compute, and then nothing is computed."""
        if not self._pipeline.taken_within(max(0.0, self._pipeline.left_s() - LOOK_AHEAD_S)):
            _look(job)

    def _compute(self, job: _Job) -> None:
        # What came to idle hands cannot have been cancelled while it waited.
        if job.waits:
            _look(job)
            if job.cancelled:
                raise RequestCancelled("cancelled before it was computed")
        hits = self._injector.draw(job.program)
        if job.parameters.get("proa.canary"):
            # The canary asks whether the worker computes; what is done to answers is for clients.
            hits = [fault for fault in hits if fault.kind in _HOLDING]
        if any(fault.kind == FaultKind.DROP for fault in hits):
            raise _Dropped
        started = time.monotonic()
        try:
            with compute_span(self._tracing, job.request, job.program, len(job.inputs[0])):
                job.outputs, job.verdict = self._run(job.program, job.inputs, hits)
        finally:
            self._finished += 1
            self._busy_s += time.monotonic() - started
        job.load = (self._finished, int(self._busy_s * 1e6))

    def _reply(self, job: _Job) -> None:
        """Judge what was computed, and send it."""
        signature, verdict = self._signatures[job.program], job.verdict
        # What a parity program gets wrong nobody could mark: a reconstruction would hide it.
        failover = job.program != "deployed" or self._package.on_fault == "failover"
        if verdict is not None and failover:
            refuse_corrupt(verdict, self._layers)
        _check_finite(job.outputs, signature)
        response = _response(job.outputs, signature, job.wanted)
        batch = len(job.outputs[0])
        if LOAD.name in job.wanted:
            # How much this worker has done since its start; the same for each of the batch.
            response.append(pb_utils.Tensor(LOAD.name, np.array([job.load] * batch, np.int64)))
        if ABFT.name in job.wanted and verdict is not None:
            response.append(pb_utils.Tensor(ABFT.name, verdict_report(verdict, batch)))
        _send(job, pb_utils.InferenceResponse(output_tensors=response))

    def _inputs(self, request: Any, signature: ProgramSignature) -> list[torch.Tensor]:
        inputs: list[torch.Tensor] = []
        for name, spec, dtype in signature.inputs:
            found = pb_utils.get_input_tensor_by_name(request, name)
            if found is None:
                raise InvalidRequest(f"input {name!r} is missing")
            if found.is_cpu() and spec.dtype != "BF16":
                tensor = torch.from_numpy(found.as_numpy())
            else:
                tensor = from_dlpack(found.to_dlpack())
            _check_shape(name, tuple(tensor.shape), spec.shape, self._package.max_batch)
            inputs.append(tensor.to(self._device, DTYPES[dtype]))
        if len({tensor.shape[0] for tensor in inputs}) > 1:
            raise InvalidRequest("the inputs disagree about the batch size")
        return inputs

    def _run(
        self, name: str, inputs: Sequence[torch.Tensor], hits: list[Fault]
    ) -> tuple[Outputs, torch.Tensor | None]:
        """The program's outputs, on the host, and its verdict where it is checked."""
        for fault in hits:
            if fault.kind in _HOLDING:
                self._injector.hold(fault)
        started = time.monotonic()
        if any(fault.kind == FaultKind.ERROR for fault in hits):
            raise Unavailable("injected fault")
        program = self._programs[name]
        layers = len(self._layers) if self._package.checked(name) else 0
        with self._bitflips.during(hits, program, layers):
            found = program(*inputs)
        # The verdict too: later it would wait on the device for the computation that comes next.
        hosted = tuple(tensor.contiguous().to("cpu") for tensor in found)
        outputs, verdict = split_verdict(hosted, self._package.checked(name))
        outputs = self._bitflips.of_outputs(hits, outputs)
        # Stands for a slower device: the worker is held, as a GPU would be.
        time.sleep(max(0.0, started + self._service_s - time.monotonic()))
        return outputs, verdict


def _record() -> faults.FaultRecord | None:
    """The fault record, where the worker was started with one."""
    scratch = os.environ.get("PROA_WORKER_SCRATCH")
    if not scratch or not (Path(scratch) / faults.FILE_NAME).exists():
        return None
    return faults.FaultRecord(Path(scratch))


def _look(job: _Job) -> None:
    """Ask Triton whether the job is cancelled, unless it was asked just now."""
    with job.lock:
        if not job.answered and time.monotonic() - job.looked_at > 2 * LOOK_AHEAD_S:
            job.cancelled = job.request.is_cancelled()
            job.looked_at = time.monotonic()


def _did(step: Callable[[_Job], None], job: _Job) -> bool:
    """Whether `step` was done for `job`; if not, its request is answered with what went wrong, but
    for one that an injected fault drops."""
    try:
        step(job)
    except _Dropped:
        return False
    except ProaError as exc:
        _fail(job, str(exc), _CODES.get(exc.status, "INTERNAL"))
        return False
    except Exception as exc:
        log.exception("a request failed")
        _fail(job, f"{type(exc).__name__} in the worker", "INTERNAL")
        return False
    return True


def _fail(job: _Job, message: str, code: str) -> None:
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    _send(job, pb_utils.InferenceResponse(error=error))


def _send(job: _Job, response: Any) -> None:
    with job.lock:
        job.answered = True
        try:
            job.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:  # Triton has given the request up, and a second answer would not help
            log.exception("an answer was not sent")


def _wanted(request: Any, signature: ProgramSignature) -> set[str]:
    """Names of the outputs to send. Who names none gets all: the program's, and the reports."""
    asked = set(request.requested_output_names())
    own = {name for name, _, _ in signature.outputs}
    if not asked & own:
        raise InvalidRequest(
            f"outputs {', '.join(sorted(asked))} are not of this program; it has"
            f" {', '.join(sorted(own))}"
        )
    return asked & (own | {LOAD.name, ABFT.name})


def _check_shape(
    name: str, found: tuple[int, ...], expected: tuple[int, ...], batch_max: int
) -> None:
    fits = len(found) == len(expected) + 1 and all(
        want in (-1, got) for got, want in zip(found[1:], expected, strict=True)
    )
    if not fits or not 1 <= found[0] <= batch_max:
        shape = ", ".join(str(n) for n in (f"1..{batch_max}", *expected))
        raise InvalidRequest(f"input {name!r} has shape {list(found)}; expected [{shape}]")


def _check_finite(outputs: tuple[torch.Tensor, ...], signature: ProgramSignature) -> None:
    if len(outputs) != len(signature.outputs):
        raise BadAnswer(f"the program has {len(outputs)} outputs, not {len(signature.outputs)}")
    for (name, _, _), output in zip(signature.outputs, outputs, strict=True):
        if output.is_floating_point() and not _finite(output):
            raise BadAnswer(f"model produced NaN or Inf in output {name!r}")


def _finite(output: torch.Tensor) -> bool:
    # On a small output numpy takes a third of torch's time; it has no bfloat16.
    if output.dtype == torch.bfloat16:
        return bool(torch.isfinite(output).all())
    return bool(np.isfinite(output.numpy()).all())


def _response(
    outputs: tuple[torch.Tensor, ...], signature: ProgramSignature, wanted: Set[str]
) -> list[Any]:
    tensors = []
    for (name, spec, _), output in zip(signature.outputs, outputs, strict=True):
        if name not in wanted:
            continue
        output = output.to(DTYPES[spec.dtype])
        if spec.dtype == "BF16":
            tensors.append(pb_utils.Tensor.from_dlpack(name, output.__dlpack__()))
        else:
            tensors.append(pb_utils.Tensor(name, output.numpy()))
    return tensors
