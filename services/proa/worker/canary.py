"""Canary inferences: readiness comes from the data path. Triton's own stays 200 over dead stubs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.text_format import ParseError
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from proa import rpc
from proa.errors import ProgramRefused, Unavailable
from proa.spec import TensorSpec
from proa.worker.manifest import FAULTS_MODEL, PACKAGE_FILE, Package

# Bytes of one zero. BYTES elements carry a length of four bytes: zero is the empty string.
ZERO_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("FP16", "BF16", "INT16", "UINT16"), 2),
    **dict.fromkeys(("FP32", "INT32", "UINT32", "BYTES"), 4),
    **dict.fromkeys(("FP64", "INT64", "UINT64"), 8),
}
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True)
class Probe:
    """Zeros for one program of one model."""

    name: str
    request: service_pb2.ModelInferRequest


def probes_of(repository: Path) -> list[Probe]:
    """A probe for each program in a model repository, and for each model that is not of ours.

    Raises ProgramRefused: nothing to serve there, or a broken package.json or config.pbtxt.
    """
    found: list[Probe] = []
    for folder in _models(repository):
        manifest = _manifest(folder)
        found += _packed(Package.read(manifest)) if manifest.exists() else [_foreign(folder)]
    if not found:
        raise ProgramRefused(f"{repository}: no model there; write one with `proa pack`")
    return found


def has_faults(repository: Path) -> bool:
    """Whether the repository was packed with fault injection."""
    return (repository / FAULTS_MODEL / "config.pbtxt").exists()


def has_foreign(repository: Path) -> bool:
    """Whether a model there is the user's own, not one of programs that `proa pack` wrote."""
    return not all(_manifest(folder).exists() for folder in _models(repository))


def _models(repository: Path) -> list[Path]:
    folders = sorted(path.parent for path in repository.glob("*/config.pbtxt"))
    return [folder for folder in folders if folder.name != FAULTS_MODEL]


def _manifest(folder: Path) -> Path:
    return folder / "1" / PACKAGE_FILE


def _packed(package: Package) -> list[Probe]:
    """One for each distinct program: a file in two roles is computed once."""
    signatures = package.signatures()
    by_hash = {ref.sha256: name for name, ref in reversed(list(package.programs.items()))}
    probes = []
    for name in package.programs:
        if name in by_hash.values():
            inputs = [spec for _, spec, _ in signatures[name].inputs]
            request = _zeros(package.model, inputs, batched=True)
            request.parameters["proa.program"].string_param = name
            probes.append(Probe(f"{package.model}/{name}", request))
    return probes


def _foreign(folder: Path) -> Probe:
    """A model that the user brought: zeros for each input its config does not call optional."""
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), config)
    except (OSError, ParseError, UnicodeDecodeError) as exc:
        raise ProgramRefused(f"{folder / 'config.pbtxt'}: {exc}") from exc
    inputs = [
        TensorSpec(
            tensor.name,
            model_config_pb2.DataType.Name(tensor.data_type)
            .removeprefix("TYPE_")
            .replace("STRING", "BYTES"),
            tuple(tensor.dims),
        )
        for tensor in config.input
        if not tensor.optional
    ]
    return Probe(folder.name, _zeros(folder.name, inputs, batched=config.max_batch_size > 0))


def _zeros(
    model: str, inputs: Sequence[TensorSpec], *, batched: bool
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id="canary")
    for spec in inputs:
        shape = [*([1] if batched else []), *(abs(dim) for dim in spec.shape)]
        request.inputs.add(name=spec.name, datatype=spec.dtype, shape=shape)
        request.raw_input_contents.append(bytes(math.prod(shape) * ZERO_BYTES[spec.dtype]))
    # Injected ERROR, DROP and BITFLIP are for clients; DELAY and PAUSE hold the worker, canary too.
    request.parameters["proa.canary"].bool_param = True
    return request


class Canary:
    """Sends probes to a Triton. Use as an async context manager."""

    def __init__(
        self,
        address: str,
        probes: Sequence[Probe],
        *,
        timeout_s: float,
        tls: rpc.ChannelTls | None = None,
    ) -> None:
        assert probes
        self._probes = probes
        self._timeout_s = timeout_s
        self._turn = 0
        self._successes = -1
        self._channel = rpc.open_channel(address, tls, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Canary:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._channel.close(None)

    async def wait_all_answer(self) -> None:
        """Return when every probe has been answered. No limit here: the caller has one."""
        for probe in self._probes:
            while True:
                try:
                    await self._infer(probe)
                except Unavailable:
                    await asyncio.sleep(0.1)
                else:
                    break

    async def check(self) -> bool:
        """Find out whether the worker computes; whether that took a probe.

        Real requests that were answered since the last look are proof enough: a probe would only
        stand in the way of others. Raises Unavailable when the worker does not compute. A probe
        that waits behind real work is no failure: as long as Triton finishes anything within the
        time limit, the worker lives.
        """
        before = await self._count()
        known, self._successes = self._successes, before
        if before > known >= 0:
            return False
        probe = self._probes[self._turn % len(self._probes)]
        self._turn += 1
        try:
            await self._infer(probe)
        except _TooLate:
            if await self._count() == before:
                raise
        self._successes = await self._count()
        return True

    async def _infer(self, probe: Probe) -> None:
        try:
            await self._stub.ModelInfer(probe.request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as exc:
            if exc.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _TooLate(f"{probe.name}: no answer within {self._timeout_s:g} s") from exc
            details = str(exc.details())
            why = rpc.reason_of(details) or f"{exc.code().name} {details}"
            raise Unavailable(f"{probe.name}: {why}") from exc

    async def _count(self) -> int:
        """Requests that Triton has answered without error since its start; -1: it does not say."""
        try:
            answer = await self._stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(), timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError:
            return -1
        return sum(int(model.inference_stats.success.count) for model in answer.model_stats)


class _TooLate(Unavailable):
    """No answer in time."""


def describe(probes: Sequence[Probe]) -> str:
    """For the log."""
    return json.dumps([probe.name for probe in probes])
