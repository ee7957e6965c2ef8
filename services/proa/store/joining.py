"""A process begins as a worker of a synchronous session.

Steps have numbers, and a step that a shard has had is acknowledged and not applied again. So who
begins must know where the session stands: a job that counted from 0 again would train for nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import (
    DeadlinePassed,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    StaleMap,
    Unavailable,
)
from proa.rpc import Channels, peer_errors
from proa.store.post import ROLE
from proa.store.pushing import RETRY_S_MAX, RETRY_S_MIN, Session, pause
from proa.store.told import MapKeeper

ASK_S_MAX = 2.0
_PASSING = (DeadlinePassed, Overloaded, RequestCancelled, StaleMap, Unavailable)


@dataclass(frozen=True)
class Joining:
    """`process` names the one that begins. `deadline`: of the loop's clock."""

    channels: Channels
    maps: MapKeeper
    session: Session
    process: int
    deadline: float

    async def run(self) -> None:
        """All shards know the process as the session's worker when this returns.

        Errors: InvalidRequest (the session does not stand at `begin`), ShardUnavailable.
        """
        at = max(await self._of_all(0))
        if at != self.session.begin:
            raise InvalidRequest(_stands_at(self.session, at))
        await self._of_all(self.process)

    async def _of_all(self, process: int) -> list[int]:
        shards = (await self.maps.fresh(self.deadline)).map.shards
        answers = await asyncio.gather(
            *(self._of_shard(shard, process) for shard in shards), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, int)]

    async def _of_shard(self, shard: int, process: int) -> int:
        wait_s, session = RETRY_S_MIN, self.session
        while True:
            told = await self.maps.fresh(self.deadline)
            entry, why = told.map.shards[shard], "down"
            if entry.up:
                request = store_pb2.BeginSessionRequest(
                    session=session.number, worker=session.worker, members=session.members,
                    epoch=entry.epoch, process=process, begin=session.begin,
                )  # fmt: skip
                channel = self.channels(told.address(shard), ROLE)
                stub = store_pb2_grpc.StorePeerStub(channel)  # type: ignore[no-untyped-call]
                left_s = self.deadline - asyncio.get_running_loop().time()
                try:
                    async with peer_errors(f"session {session.number}, shard {shard}"):
                        answer = await stub.BeginSession(
                            request, timeout=max(0.01, min(ASK_S_MAX, left_s))
                        )
                    return int(answer.next)
                except _PASSING as exc:
                    why = str(exc)
            self.maps.hurry()
            await pause(wait_s, self.deadline, why if entry.up else f"shard {shard} is down")
            wait_s = min(2 * wait_s, RETRY_S_MAX)


def _stands_at(session: Session, at: int) -> str:
    call = f"Session({session.number}, {session.worker}, {session.members}"
    return (
        f"session {session.number}, worker {session.worker}: the store stands at step {at} of it,"
        f" not at begin = {session.begin}: steps it has had would not be applied again. A job that"
        f" goes on at step {at} says {call}, begin={at}); any other takes a new number"
    )
