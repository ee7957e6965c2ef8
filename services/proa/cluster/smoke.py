"""`proa-service smoke`: asks every model a few queries through the frontend, then ends.

What `helm test` runs. One line of the log per model; the exit code is 1 if one failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from proa import rpc, wire
from proa import spec as specs
from proa.client import Answer, Metadata, Tls
from proa.client.messages import MESSAGE_BYTES_MAX, read_answer, read_metadata
from proa.cluster.settings import SmokeSettings
from proa.errors import (
    BadAnswer,
    DeadlinePassed,
    Overloaded,
    ProaError,
    SettingsError,
    Unavailable,
)
from proa.runtime.settings import from_env
from proa.spec import CodedModel, TensorSpec

log = logging.getLogger(__name__)

POLL_S = 0.2
RECONSTRUCTED = "reconstructed"
_REDUNDANT = ("auto", "parity")
_SEED = 20_191_027  # the same queries every time

Arrays = Mapping[str, NDArray[Any]]


async def main() -> None:
    """Test as the environment says."""
    await smoke(from_env(SmokeSettings, os.environ))


async def smoke(settings: SmokeSettings) -> None:
    """Ask every model. Errors: ProaError names the models that failed, or says that the server did
    not become ready; SettingsError and SpecError for what we were given."""
    models = _models(settings.specs)
    end_s = time.monotonic() + settings.timeout_s
    failed = []
    async with _connected(settings) as server:
        await server.wait_ready(end_s)
        for model in models:
            began = time.monotonic()
            try:
                async with asyncio.timeout(end_s - began):
                    found = await _test(server, model, settings)
            except (ProaError, TimeoutError) as exc:
                why = exc if str(exc) else f"not done within {settings.timeout_s:g} s"
                log.error("FAILED model=%s error=%s", model.name, why)  # noqa: TRY400 - one line
                failed.append(model.name)
            else:
                log.info("ok model=%s %s ms=%.0f", model.name, found, _ms_since(began))
    if failed:
        raise ProaError(f"{len(failed)} of {len(models)} models failed: {', '.join(failed)}")


class _Server:
    """The protocol's calls that a test takes, with the token if there is one."""

    def __init__(self, channel: grpc.aio.Channel, address: str, token: str | None) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._address = address
        self._metadata = rpc.bearer(token)

    async def wait_ready(self, end_s: float) -> None:
        """Errors: Unavailable, with what the server said last."""
        last = "it says that it is not"
        while time.monotonic() < end_s:
            try:
                if (await self._call("ServerReady", service_pb2.ServerReadyRequest())).ready:
                    return
            except (Unavailable, DeadlinePassed) as exc:
                last = str(exc)
            await asyncio.sleep(POLL_S)
        raise Unavailable(f"{self._address} did not become ready: {last}")

    async def metadata(self, model: str) -> Metadata:
        request = service_pb2.ModelMetadataRequest(name=model)
        return read_metadata(await self._call("ModelMetadata", request))

    async def infer(self, model: str, query: Arrays, **parameters: wire.Parameter) -> Answer:
        """An answer, later where the server or our token's rate asks for patience."""
        request = wire.write_request(model, query, outputs=(), parameters=parameters)
        while True:
            try:
                return read_answer(await self._call("ModelInfer", request))
            except Overloaded as exc:
                await asyncio.sleep(exc.retry_after_s)

    async def _call(self, method: str, request: Any) -> Any:
        async with rpc.peer_errors(self._address):
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=10.0)


@asynccontextmanager
async def _connected(settings: SmokeSettings) -> Any:
    if settings.tls_ca is None and (settings.tls_cert or settings.tls_key):
        raise SettingsError("PROA_SMOKE_TLS_CERT and PROA_SMOKE_TLS_KEY need PROA_SMOKE_TLS_CA")
    tls = None
    if settings.tls_ca is not None:
        tls = Tls(ca=settings.tls_ca, cert=settings.tls_cert, key=settings.tls_key).read()
    channel = rpc.connect(settings.address, message_bytes_max=MESSAGE_BYTES_MAX, tls=tls)
    async with channel:
        yield _Server(channel, settings.address, _token(settings.token_file))


def _token(file: Path | None) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() if file else None
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"PROA_SMOKE_TOKEN_FILE={file} cannot be read: {exc}") from exc


def _models(folder: Path) -> list[CodedModel]:
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise SettingsError(f"PROA_SMOKE_SPECS={folder}: no *.yaml there")
    return [specs.load(file) for file in files]


async def _test(server: _Server, model: CodedModel, settings: SmokeSettings) -> str:
    """What was found, for the log. Errors: those of the calls; BadAnswer."""
    _check_metadata(model, await server.metadata(model.name))
    rng = np.random.default_rng(_SEED)
    queries = [_zeros(model), *(_random(model, rng) for _ in range(settings.queries))]
    sources = Counter[str]()
    for query in queries:
        answer = await server.infer(model.name, query)
        _check_answer(model, answer)
        sources[answer.source or "unnamed"] += 1
    found = "sources=" + ",".join(f"{name}:{count}" for name, count in sources.items())
    if settings.reconstruct and _reconstructs(model):
        await _demand_reconstruction(server, model, queries)
        found += " reconstructed=yes"
    return found


def _reconstructs(model: CodedModel) -> bool:
    redundancy = model.redundancy
    return model.has_parity and redundancy.policy in _REDUNDANT and redundancy.mode == "enforce"


async def _demand_reconstruction(
    server: _Server, model: CodedModel, queries: Sequence[Arrays]
) -> None:
    """One answer from the code. Others than the last query may be answered exactly: the group may
    have been late or a worker busy."""
    for query in queries:
        answer = await server.infer(model.name, query, **{"proa.reconstruct": True})
        _check_answer(model, answer)
        if answer.source == RECONSTRUCTED:
            return
    raise BadAnswer(
        f"not reconstructed in {len(queries)} tries, the last answer came from {answer.source!r}:"
        " the model has parity, but its code does not answer; see the frontend's status"
    )


def _check_metadata(model: CodedModel, metadata: Metadata) -> None:
    for what, wanted, found in (
        ("inputs", model.model.inputs, metadata.inputs),
        ("outputs", model.model.outputs, metadata.outputs),
    ):
        declared = {(tensor.name, tensor.dtype) for tensor in wanted}
        served = {(tensor.name, tensor.dtype) for tensor in found}
        if declared != served:
            raise BadAnswer(f"{what} are {sorted(served)}, the spec says {sorted(declared)}")


def _check_answer(model: CodedModel, answer: Answer) -> None:
    for tensor in model.model.outputs:
        array = answer.outputs.get(tensor.name)
        if array is None:
            raise BadAnswer(f"no output {tensor.name!r}, but {sorted(answer.outputs)}")
        wanted = (1, *tensor.shape)
        fits = len(wanted) == array.ndim and all(
            size in (-1, have) for size, have in zip(wanted, array.shape, strict=True)
        )
        if not fits or array.dtype != wire.DTYPES[tensor.dtype]:
            raise BadAnswer(
                f"output {tensor.name!r} is {array.dtype} {list(array.shape)}, the spec says"
                f" {tensor.dtype} {list(wanted)}"
            )


def _zeros(model: CodedModel) -> Arrays:
    return {tensor.name: _filled(tensor) for tensor in model.model.inputs}


def _filled(tensor: TensorSpec) -> NDArray[Any]:
    if tensor.dtype == "BYTES":
        return np.full(_shape(tensor), b"", dtype=object)
    return np.zeros(_shape(tensor), wire.DTYPES[tensor.dtype])


def _random(model: CodedModel, rng: np.random.Generator) -> Arrays:
    """Numbers in [0, 1), small integers; text stays empty."""
    query = {}
    for tensor in model.model.inputs:
        if tensor.dtype == "BYTES":
            query[tensor.name] = _filled(tensor)
            continue
        whole = "INT" in tensor.dtype or tensor.dtype == "BOOL"
        values = rng.integers(0, 2, _shape(tensor)) if whole else rng.random(_shape(tensor))
        query[tensor.name] = values.astype(wire.DTYPES[tensor.dtype])
    return query


def _shape(tensor: TensorSpec) -> tuple[int, ...]:
    """With the batch axis; 1 for an axis of any length."""
    return (1, *(abs(size) for size in tensor.shape))


def _ms_since(began_s: float) -> float:
    return (time.monotonic() - began_s) * 1000.0
