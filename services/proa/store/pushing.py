"""Pushing a step: what goes to which shard, and trying until it is acknowledged or refused."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc.aio
import numpy as np

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import (
    BadAnswer,
    DataLost,
    DeadlinePassed,
    InvalidRequest,
    Overloaded,
    ProaError,
    PushIndeterminate,
    RequestCancelled,
    ShardUnavailable,
    StaleMap,
    Unavailable,
)
from proa.rpc import Channels, error_from
from proa.store import wire
from proa.store.initial import Floats, Ids
from proa.store.optimisers import check_gradients
from proa.store.post import ROLE
from proa.store.protocol import messages as ms
from proa.store.protocol.heard import FIRST_CLIENT
from proa.store.protocol.layout import Block
from proa.store.shell import OUT_OF_MEMORY
from proa.store.tables import Catalogue
from proa.store.told import MapKeeper, Told

TRY_S_MAX = 5.0  # outside a session; the same push is sent again after that
RETRY_S_MIN, RETRY_S_MAX = 0.01, 0.3
TELL_S_MAX = 0.5
FULL_RETRY_S = 5.0
WORKER_BITS = 62
# What a push takes in a message beside its payload, at most.
ROW_BYTES, PART_BYTES, PUSH_BYTES = 4, 64, 256
REFUSED = (InvalidRequest, DataLost)  # for good: the same push would be refused again
# Errors of a call after which another try may succeed; the agent has said no more than that.
PASSING = (
    BadAnswer, DeadlinePassed, Overloaded, PushIndeterminate, RequestCancelled, StaleMap,
    Unavailable,
)  # fmt: skip

Gradients = Mapping[str, tuple[Ids, Floats]]
Parts = dict[int, list[ms.Part]]  # by shard


@dataclass(frozen=True)
class Session:
    """Synchronous training: `worker` is one of `members` that push every step together.

    number: 1 to 2^62 - 1, the same for all workers of a job and of no other one: the store applies
    a step of a session once and for ever, so a job that begins anew takes a new number. begin: the
    first step, for a job that goes on with a number; who is not at the step at which the store
    stands is refused (InvalidRequest, which names that step).
    """

    number: int
    worker: int
    members: int
    begin: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.number < 1 << WORKER_BITS:
            raise InvalidRequest(f"session = {self.number} is not 1 to 2^{WORKER_BITS} - 1")
        if not 0 <= self.worker < self.members:
            raise InvalidRequest(f"worker = {self.worker}: the session has {self.members} members")
        if not 0 <= self.begin < 1 << WORKER_BITS:
            raise InvalidRequest(f"begin = {self.begin} is not 0 to 2^{WORKER_BITS} - 1")


@dataclass(frozen=True)
class Who:
    """Step `step` of `worker`; all its steps below `floor()` were acknowledged. process: the one
    that began as the worker of a session (`joining`)."""

    worker: int
    step: int
    floor: Callable[[], int]
    process: int = 0


@dataclass
class Steps:
    """Steps of somebody whom nobody else is, each of its own."""

    worker: int = field(default_factory=lambda: FIRST_CLIENT + secrets.randbits(WORKER_BITS))
    next: int = 0
    open: set[int] = field(default_factory=set)

    @contextlib.contextmanager
    def step(self) -> Iterator[Who]:
        """The next one, while it is under way."""
        step = self.next
        self.next += 1
        self.open.add(step)
        try:
            yield Who(self.worker, step, lambda: min(self.open, default=self.next))
        finally:
            self.open.discard(step)


def parts_of(catalogue: Catalogue, gradients: Gradients, *, everywhere: bool) -> Parts:
    """What each shard gets. everywhere: also those that get nothing, as sessions need.

    Errors: InvalidRequest, naming table and ids.
    """
    found: dict[int, list[ms.Part]] = defaultdict(list)
    if everywhere:
        found.update({shard: [] for shard in range(len(catalogue.domains))})
    for name, (ids, values) in gradients.items():
        table = catalogue.table(name)
        rows = np.ascontiguousarray(values, np.float32)
        if rows.shape != (len(ids), table.dim):
            raise InvalidRequest(
                f"table {name!r}: gradients {list(rows.shape)} are not [{len(ids)}, {table.dim}]"
            )
        check_gradients(name, ids, rows)
        payload = rows.view(np.uint8)
        for one in catalogue.locate(name, ids):
            shard = catalogue.layout.shard_of(*one.block)
            found[shard].append(ms.Part(one.block, one.rows, payload[one.where]))
    return found


def check_sizes(parts: Parts, message_bytes_max: int) -> None:
    """Errors: InvalidRequest, of what no message can take to its shard."""
    for shard, some in parts.items():
        rows = sum(len(part.rows) for part in some)
        size = PUSH_BYTES + PART_BYTES * len(some) + ROW_BYTES * rows
        size += sum(part.payload.nbytes for part in some)
        if size > message_bytes_max:
            raise InvalidRequest(
                f"{rows} rows for shard {shard} are {size} bytes in one push, above"
                f" message_bytes_max = {message_bytes_max}: push fewer rows at once, or raise it"
                " here and at the agents (PROA_STORE_MESSAGE_BYTES_MAX)"
            )


class Pusher:
    """Knows where owners are, and asks `maps` when it does not."""

    def __init__(self, channels: Channels, maps: MapKeeper) -> None:
        self._channels, self._maps = channels, maps

    async def push(
        self, told: Told, who: Who, parts: Parts, deadline: float, session: Session | None
    ) -> None:
        """Returns when all shards have acknowledged it. Errors: InvalidRequest and DataLost, when
        each shard has acknowledged its part or refused it so. At once, those of a call that no
        other try can mend (PermissionDenied). At `deadline` (loop's clock) PushIndeterminate; or,
        where it is certain that nothing of it was written, ShardUnavailable or Overloaded."""
        results = await asyncio.gather(
            *(
                self._push_to(told, shard, who, some, deadline, session)
                for shard, some in parts.items()
            ),
            return_exceptions=True,
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        unsettled = [error for error in errors if not isinstance(error, REFUSED)]
        for error in unsettled:
            if not isinstance(error, Overloaded | ShardUnavailable):
                raise error
        if not errors:
            return
        if not unsettled or len(unsettled) == len(parts):
            raise errors[0]
        raise PushIndeterminate(
            f"{unsettled[0]}; other shards have acknowledged or refused their part", step=who.step
        )

    async def _push_to(
        self,
        told: Told,
        shard: int,
        who: Who,
        parts: list[ms.Part],
        deadline: float,
        session: Session | None,
    ) -> None:
        """Until it is acknowledged: the same push may be sent as often as one likes."""
        wait_s, unsure, why = RETRY_S_MIN, False, "no answer"
        while True:
            entry = told.map.shards[shard]
            if entry.up:
                push = ms.Push(who.worker, who.step, who.floor(), entry.epoch, tuple(parts))
                limit_s = deadline - asyncio.get_running_loop().time()
                try:
                    timeout_s = limit_s if session else min(limit_s, TRY_S_MAX)
                    refused = await self._send(
                        told.address(shard), push, session, timeout_s, who.process
                    )
                    if refused is None:
                        return
                    why = _judge(told.catalogue, refused)
                except grpc.aio.AioRpcError as exc:
                    error = _checked(exc, who.step, f"shard {shard}", unsure=unsure)
                    unsure = unsure or not isinstance(error, Overloaded)
                    if isinstance(error, Overloaded):
                        why = ms.Refusal.OVERLOADED.name
                    elif not isinstance(error, DeadlinePassed):
                        why = exc.details() or exc.code().name
            else:
                why = "down"
            self._maps.hurry()
            try:
                await pause(wait_s, deadline, f"shard {shard}: {why}")
                told = await self._maps.fresh(deadline)
            except ShardUnavailable as exc:
                raise _given_up(who.step, exc, why, unsure=unsure) from exc
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def tell_floor(self, told: Told, session: Session, floor: int, process: int) -> None:
        """Every step below was acknowledged: to all agents, as well as that goes."""
        push = ms.Push(session.worker, floor - 1, floor, 0, ())

        async def tell(address: str) -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._send(address, push, session, TELL_S_MAX, process)

        await asyncio.gather(*(tell(address) for address in told.agents))

    async def _send(
        self,
        address: str,
        push: ms.Push,
        session: Session | None,
        timeout_s: float,
        process: int = 0,
    ) -> store_pb2.PeerMessage.PushRefused | None:
        request = store_pb2.PushBlocksRequest(push=wire.to_proto(push).push)
        if session is not None:
            request.session, request.members = session.number, session.members
            request.process = process
        channel = self._channels(address, ROLE)
        stub = store_pb2_grpc.StorePeerStub(channel)  # type: ignore[no-untyped-call]
        answer = await stub.PushBlocks(request, timeout=max(0.01, timeout_s))
        return answer.refused if answer.HasField("refused") else None


def _checked(exc: grpc.aio.AioRpcError, step: int, where: str, *, unsure: bool) -> ProaError:
    """What a call met that is worth another try. Errors: at once what is not; PushIndeterminate
    where an earlier try may have been written (`unsure`)."""
    error = error_from(exc, f"step {step}, {where}")
    if isinstance(error, PASSING):
        return error
    if unsure:
        raise PushIndeterminate(str(error), step=step) from exc
    if "larger than max" in str(error):
        raise InvalidRequest(f"{error} (PROA_STORE_MESSAGE_BYTES_MAX of the agent)") from exc
    raise error from exc


def _judge(catalogue: Catalogue, refused: store_pb2.PeerMessage.PushRefused) -> str:
    """Why it is worth another try. Errors: InvalidRequest, DataLost."""
    if refused.why == ms.Refusal.INVALID.name:
        raise InvalidRequest(f"step {refused.step}: the shard refuses it as invalid")
    if refused.why == ms.Refusal.DATA_LOST.name:
        lost = [(Block(x.block.stripe, x.block.position), x.row) for x in refused.lost]
        table = catalogue.placed_at(lost[0][0].stripe).table.name
        ids = [int(catalogue.ids(block, np.array([row], np.intp))[1][0]) for block, row in lost]
        raise lost_rows(table, tuple(ids))
    return OUT_OF_MEMORY if refused.why == ms.Refusal.OUT_OF_MEMORY.name else str(refused.why)


def _given_up(step: int, late: ShardUnavailable, why: str, *, unsure: bool) -> ProaError:
    """unsure: one of the tries was not answered, and so may have been written."""
    message = f"step {step}: {late}"
    if unsure:
        return PushIndeterminate(message, step=step)
    if why in (OUT_OF_MEMORY, ms.Refusal.OVERLOADED.name):
        return Overloaded(message, retry_after_s=FULL_RETRY_S)
    return ShardUnavailable(message)


async def pause(wait_s: float, deadline: float, what: str) -> None:
    """Wait before another try. Errors: ShardUnavailable where `deadline` comes before its end."""
    if asyncio.get_running_loop().time() + wait_s >= deadline:
        raise ShardUnavailable(f"not in time: {what}")
    await asyncio.sleep(wait_s)


def lost_rows(table: str, ids: tuple[int, ...]) -> ProaError:
    """The error that names rows nothing can bring back."""
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    message = f"table {table!r}: more shards were lost than the parity covers: ids {shown}"
    return DataLost(message, table=table, ids=ids)
