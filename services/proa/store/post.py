"""Messages between the processes of a store: one stream of frames to each, opened by who speaks.

Nothing is kept for long and nothing is sent twice: what cannot be delivered now is dropped, and the
protocol says it again. So a dead peer costs no memory, and a slow one only its own messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable

import grpc.aio

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import InvalidRequest
from proa.rpc import Channels
from proa.store import wire
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import COORDINATOR

log = logging.getLogger(__name__)

COORDINATOR_NUMBER = -1
MESSAGES_MAX = 8192  # to one peer; the oldest are dropped first
FRAME_MESSAGES_MAX = 64
FRAME_BYTES_MAX = 4 << 20
RETRY_S_MIN, RETRY_S_MAX = 0.02, 0.1
ROLE = "store"
TURN_S = 0.005  # of messages that are handled without a pause: what they commit goes together

Receive = Callable[[Hashable, ms.Message], None]


class Post:
    """Takes messages to shards (by number) and to COORDINATOR. `address`: where each of them is."""

    def __init__(
        self, me: Hashable, address: Callable[[Hashable], str], channels: Channels
    ) -> None:
        self._me = number_of(me)
        self._address, self._channels = address, channels
        self._lines: dict[Hashable, _Line] = {}

    def send(self, to: Hashable, message: ms.Message) -> None:
        """Deliver soon, or never."""
        line = self._lines.get(to)
        if line is None:
            line = self._lines[to] = _Line(self._me, to, self._address, self._channels)
        line.put(message)

    async def close(self) -> None:
        """What was not delivered yet is dropped."""
        lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.task.cancel()
        await asyncio.gather(*(line.task for line in lines), return_exceptions=True)


class _Line:
    """To one peer."""

    def __init__(
        self, me: int, to: Hashable, address: Callable[[Hashable], str], channels: Channels
    ) -> None:
        self._me, self._to, self._address, self._channels = me, to, address, channels
        self._queue: deque[ms.Message] = deque(maxlen=MESSAGES_MAX)
        self._some = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"post to {to}")

    def put(self, message: ms.Message) -> None:
        self._queue.append(message)
        self._some.set()

    async def _run(self) -> None:
        wait_s = RETRY_S_MIN
        while True:
            await self._some.wait()
            call = None
            try:
                channel = self._channels(self._address(self._to), ROLE)
                stub = store_pb2_grpc.StorePeerStub(channel)  # type: ignore[no-untyped-call]
                call = stub.Exchange()
                while True:
                    await self._some.wait()
                    await call.write(self._frame())
                    wait_s = RETRY_S_MIN
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as exc:
                log.debug("messages to %s are lost: %s", self._to, exc)
            finally:
                if call is not None:
                    call.cancel()
            self._queue.clear()
            self._some.clear()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    def _frame(self) -> store_pb2.PeerFrame:
        frame = store_pb2.PeerFrame(sender=self._me)
        size = 0
        while self._queue and len(frame.messages) < FRAME_MESSAGES_MAX and size < FRAME_BYTES_MAX:
            message = wire.to_proto(self._queue.popleft())
            size += message.ByteSize()
            frame.messages.append(message)
        if not self._queue:
            self._some.clear()
        return frame


def number_of(who: Hashable) -> int:
    """A sender as frames have it."""
    return COORDINATOR_NUMBER if who == COORDINATOR else int(str(who))


async def deliver(
    frames: AsyncIterator[store_pb2.PeerFrame], shards: int, receive: Receive
) -> None:
    """Hand on what a peer says until it ends. Errors: InvalidRequest, which ends its stream."""
    loop = asyncio.get_running_loop()
    async for frame in frames:
        began = loop.time()
        if frame.sender != COORDINATOR_NUMBER and not 0 <= frame.sender < shards:
            raise InvalidRequest(f"sender = {frame.sender}: there are {shards} shards")
        sender = COORDINATOR if frame.sender == COORDINATOR_NUMBER else frame.sender
        for message in frame.messages:
            receive(sender, wire.from_proto(message))
            if loop.time() - began > TURN_S:
                await asyncio.sleep(0)  # others' turn: a part of a fence takes a while
                began = loop.time()
