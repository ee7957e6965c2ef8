"""Faults that our own processes act out: `proa.api.v1.FaultInjector`, and `proa_faults` of workers.

The time to live is enforced there. Works anywhere, with no privilege, where fault injection is on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2

from proa import wire
from proa.api.v1 import faults_pb2
from proa.errors import EnvironmentLacks, NotSupported, ProaError, Unavailable, UnknownModel
from proa.rpc import FRONTEND, WORKER, bearer, peer_errors
from proa.store.post import ROLE as STORE
from proa_chaos.experiment import EMBEDDING
from proa_chaos.plan import Hit
from proa_chaos.selection import COORDINATOR_ROLE, SHARD_ROLE, Target

log = logging.getLogger(__name__)

FAULT_MODEL = "proa_faults"
CALL_S_MAX = 5.0
ANNOUNCE_S_MAX = 1.0
KINDS = {
    "slow": faults_pb2.DELAY,
    "pause": faults_pb2.PAUSE,
    "error": faults_pb2.ERROR,
    "drop": faults_pb2.DROP,
    "bitflip": faults_pb2.BITFLIP,
    "partition": faults_pb2.DROP,
    "stale-disk": faults_pb2.STALE_DISK,
}
SITES = {
    "output": faults_pb2.OUTPUT,
    "weight": faults_pb2.WEIGHT,
    "activation": faults_pb2.ACTIVATION,
    EMBEDDING: faults_pb2.EMBEDDING,
}
WORKER_ROLES = ("worker", "parity-worker")
_KILLED_ONLY = ("store-agent", "store-server", COORDINATOR_ROLE)  # the shard is what takes faults
_SERVICE = "/proa.api.v1.FaultInjector/"


class Connect(Protocol):
    """Open channels by address and role: `proa.rpc.Channels`, or several of them."""

    def __call__(self, address: str, role: str = WORKER) -> grpc.aio.Channel: ...


class InBand:
    """Injects, clears and lists faults. `prefix`: of the ids of this run's faults. `token`: for
    frontends that want one; it must have `faults: true` there."""

    def __init__(
        self, channels: Connect, prefix: str, seed: int, *, token: str | None = None
    ) -> None:
        self._channels = channels
        self._prefix = prefix
        self._seed = seed
        self._metadata = bearer(token)

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        """Errors: NotSupported (see `check`), Overloaded (16 faults are active there)."""
        fault = faults_pb2.Fault(
            id=self._id(hit),
            kind=KINDS[hit.fault.action],
            ttl_ms=max(1, round(ttl_s * 1000)),
            probability=0.0 if hit.fault.on_shards else hit.fault.parameters.probability,
            program=_program(hit),
            delay_ms=hit.fault.parameters.delay_ms,
            bits=hit.fault.parameters.bits,
            seed=self._seed_of(hit),
            site=SITES[hit.fault.parameters.site],
        )
        await self._ask(
            acting(hit), faults_pb2.FaultRequest(inject=faults_pb2.InjectRequest(fault=fault))
        )

    def _seed_of(self, hit: Hit) -> int:
        """Of stored rows other bits each time: the same ones again would be put right."""
        if not hit.fault.on_shards:
            return self._seed
        return random.Random(f"{self._seed} {hit.id}").getrandbits(63)  # noqa: S311  # repeatable

    async def clear(self, hit: Hit) -> None:
        """End it. A process that started anew has no fault, which is no error; nor is an agent
        that has left to come back with its old disk."""
        clear = faults_pb2.ClearRequest(id=self._id(hit))
        try:
            await self._ask(acting(hit), faults_pb2.FaultRequest(clear=clear))
        except Unavailable:
            if hit.fault.action != "stale-disk":
                raise

    async def announce(self, frontends: Sequence[Target], hit: Hit, ttl_s: float) -> None:
        """Tell who watches these frontends that `hit` acts for `ttl_s` from now, 0: no more.

        Errors: none. A frontend that takes no announcements has nobody who could see them.
        """
        await asyncio.gather(*(self._announce(one, hit, ttl_s) for one in frontends))

    async def _announce(self, frontend: Target, hit: Hit, ttl_s: float) -> None:
        request = faults_pb2.AnnounceRequest(
            id=self._id(hit),
            action=hit.fault.action,
            target=_program(hit) if hit.fault.action == "partition" else hit.target.name,
            ttl_ms=round(ttl_s * 1000),
        )
        call = self._channels(frontend.address, FRONTEND).unary_unary(
            f"{_SERVICE}Announce",
            request_serializer=faults_pb2.AnnounceRequest.SerializeToString,
            response_deserializer=faults_pb2.AnnounceReply.FromString,
        )
        try:
            async with peer_errors(frontend.name):
                await call(request, timeout=ANNOUNCE_S_MAX, metadata=self._metadata)
        except ProaError as exc:
            log.info("%s was not told of %s: %s", frontend.name, hit.text, exc)

    async def active(self, target: Target) -> list[faults_pb2.Fault]:
        """The faults in force at `target`, anybody's. Errors: EnvironmentLacks (it takes none)."""
        request = faults_pb2.FaultRequest(list=faults_pb2.ListRequest())
        try:
            return list((await self._ask(target, request)).active)
        except (UnknownModel, NotSupported) as exc:
            raise EnvironmentLacks(
                f"{target.name} takes no faults ({exc}): start it with fault injection, locally"
                " `proa up --faults` or `proa store up --faults`, in the chart chaos.enabled and"
                " models[].faults"
            ) from exc

    def _id(self, hit: Hit) -> str:
        return f"{self._prefix}-{hit.id}"

    async def _ask(self, target: Target, request: faults_pb2.FaultRequest) -> faults_pb2.FaultReply:
        async with peer_errors(target.name):
            if target.role in WORKER_ROLES:
                return await self._ask_worker(target, request)
            return await self._ask_service(target, request)

    async def _ask_worker(
        self, target: Target, request: faults_pb2.FaultRequest
    ) -> faults_pb2.FaultReply:
        data = np.frombuffer(request.SerializeToString(), np.uint8)
        call = self._channels(target.address, WORKER).unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        message = wire.write_request(FAULT_MODEL, {"request": data}, outputs=["reply"])
        reply = wire.read_response(await call(message, timeout=CALL_S_MAX))["reply"]
        found: faults_pb2.FaultReply = faults_pb2.FaultReply.FromString(reply.tobytes())
        return found

    async def _ask_service(
        self, target: Target, request: faults_pb2.FaultRequest
    ) -> faults_pb2.FaultReply:
        op = str(request.WhichOneof("op"))
        message = getattr(request, op)
        role = STORE if target.role == SHARD_ROLE else target.role
        call = self._channels(target.address, role).unary_unary(
            _SERVICE + op.capitalize(),
            request_serializer=type(message).SerializeToString,
            response_deserializer=faults_pb2.FaultReply.FromString,
        )
        found: faults_pb2.FaultReply = await call(
            message,
            timeout=CALL_S_MAX,
            metadata=self._metadata if target.role == FRONTEND else None,
        )
        return found


def check(hit: Hit) -> None:
    """Raise NotSupported for a fault that its target cannot act out in-band."""
    role, action = acting(hit).role, hit.fault.action
    if action not in KINDS:
        raise NotSupported(f"{hit.text}: this action cannot be done here")
    if hit.fault.on_shards:
        return  # its targets are shards
    if action == "bitflip" and role not in WORKER_ROLES:
        raise NotSupported(f"{hit.text}: only workers have outputs to flip")
    if role in _KILLED_ONLY:
        raise NotSupported(f"{hit.text}: a {role} takes kill and a frozen process; shards take it")
    if action != "partition" and role == "frontend":
        raise NotSupported(f"{hit.text}: a frontend takes partition, kill and a frozen process")


def acting(hit: Hit) -> Target:
    """Where the fault acts: a partition at the side that is a frontend."""
    if hit.fault.action == "partition" and hit.target.role != "frontend":
        if hit.peer is None or hit.peer.role != "frontend":
            raise NotSupported(f"{hit.text}: one side of a partition must be a frontend")
        return hit.peer
    return hit.target


def _program(hit: Hit) -> str:
    if hit.fault.action != "partition":
        return hit.fault.parameters.program
    other = hit.target if acting(hit) is hit.peer else hit.peer
    assert other is not None
    return other.name
