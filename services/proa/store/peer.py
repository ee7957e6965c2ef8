"""proa.api.v1.StorePeer, as agents and the coordinator serve it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc.aio

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import InvalidRequest, StaleMap, Unavailable
from proa.rpc import Context, servicer_errors, servicer_stream_errors
from proa.store import wire
from proa.store.gate import StepGate, next_of
from proa.store.hold import Hold
from proa.store.post import Receive, deliver
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Paced, Phase
from proa.store.protocol.agent import Agent
from proa.store.scrub import Scrub
from proa.store.shell import PushAnswer, Shell

QUIET_MS_MAX = 1 << 31
FLUSH_LOOK_S = 0.02
NAME = store_pb2.DESCRIPTOR.services_by_name["StorePeer"].full_name


class PeerService(store_pb2_grpc.StorePeerServicer):
    """Of the coordinator: messages alone. `shards`: how many there are, 0 while not known."""

    def __init__(self, shards: Callable[[], int], receive: Receive) -> None:
        self._shards, self._receive = shards, receive
        self._streams: set[asyncio.Task[None]] = set()

    @servicer_stream_errors
    async def Exchange(
        self,
        request_iterator: AsyncIterator[store_pb2.PeerFrame],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.PeerFrame]:
        delivery = deliver(request_iterator, self._shards(), self._receive)
        task = asyncio.create_task(delivery)
        self._streams.add(task)
        try:
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        finally:
            task.cancel()
            self._streams.discard(task)
        nothing: tuple[store_pb2.PeerFrame, ...] = ()  # what we say goes by a stream of our own
        for frame in nothing:
            yield frame

    def end_streams(self) -> None:
        """Those who speak to us would go on for ever."""
        for task in self._streams:
            task.cancel()


class AgentService(PeerService):
    """Of an agent: pushes too, and its report."""

    def __init__(
        self,
        shell: Shell,
        shards: Callable[[], int],
        report: Callable[[], store_pb2.ShardReport],
        scrub: Callable[[int], Scrub],
    ) -> None:
        super().__init__(shards, shell.receive)
        self._shell, self._report = shell, report
        self._scrub = scrub
        self._gate = StepGate(shell.push, shell.check)
        self._hold = Hold(time.monotonic)

    @servicer_errors
    async def Report(
        self,
        request: store_pb2.ReportRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> store_pb2.ShardReport:
        return self._report()

    @servicer_errors
    async def Flush(
        self,
        request: store_pb2.FlushRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> store_pb2.FlushResponse:
        agent = self._serving()
        state = agent.owner.state
        ahead = state.ahead()
        while ahead := state.still_ahead(ahead):
            await asyncio.sleep(FLUSH_LOOK_S)
            if self._shell.agent is not agent:
                raise Unavailable(f"shard {self._shell.shard} was lost to another agent")
        return store_pb2.FlushResponse()

    @servicer_errors
    async def Pace(
        self,
        request: store_pb2.PaceRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.ShardReport:
        self._shell.handle(Paced(request.rows_per_s_max, request.lease_ms / 1000.0))
        return self._report()

    @servicer_stream_errors
    async def Scrub(
        self,
        request: store_pb2.ScrubRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.ScrubProgress]:
        async for progress in self._scrub(request.rows_per_s_max).run():
            yield progress

    @servicer_errors
    async def Hold(
        self,
        request: store_pb2.HoldRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.HoldResponse:
        hold = self._hold
        hold.hold(request.lease_ms / 1000.0, {one.worker: one.step for one in request.until})
        return store_pb2.HoldResponse(
            taken=[store_pb2.WorkerStep(worker=w, step=s) for w, s in hold.taken.items()],
            under_way=hold.under_way,
            quiet_ms=min(round(hold.quiet_s * 1000), QUIET_MS_MAX) if hold.taken else QUIET_MS_MAX,
        )

    @servicer_errors
    async def PushBlocks(
        self,
        request: store_pb2.PushBlocksRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.PushBlocksResponse:
        push = wire.from_proto(store_pb2.PeerMessage(push=request.push))
        assert isinstance(push, ms.Push)
        answer = await self._pushed(push, request)
        if isinstance(answer, ms.PushRefused):
            return store_pb2.PushBlocksResponse(refused=wire.to_proto(answer).push_refused)
        return store_pb2.PushBlocksResponse()

    @servicer_errors
    async def BeginSession(
        self,
        request: store_pb2.BeginSessionRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.BeginSessionResponse:
        agent, session = self._serving(), request.session
        if request.epoch != agent.epoch:
            raise StaleMap(
                f"epoch = {request.epoch}: shard {self._shell.shard} is in epoch {agent.epoch}",
                version=agent.map.version,
            )
        blocks = (owned.sessions for owned in agent.owner.state.blocks.values())
        found = max(self._gate.next_step(session, request.members), next_of(blocks, session))
        if request.process:
            if found > request.begin:
                raise InvalidRequest(f"begin = {request.begin}: step {found - 1} is known already")
            self._gate.begin(session, request.members, request.worker, request.process)
        return store_pb2.BeginSessionResponse(next=found)

    def _serving(self) -> Agent:
        agent = self._shell.agent
        if agent is None or agent.phase is not Phase.OPEN:
            raise Unavailable(f"shard {self._shell.shard} does not serve")
        return agent

    async def _pushed(self, push: ms.Push, request: store_pb2.PushBlocksRequest) -> PushAnswer:
        refused = self._shell.refusal(push)
        if refused is not None and not (request.session and not push.parts):
            return refused
        if not push.parts and not request.session:
            raise InvalidRequest("parts: a push outside a session has at least one")
        worker = request.session or push.worker
        if self._hold.refuses(worker, push.step):
            return ms.PushRefused(push.worker, push.step, ms.Refusal.OVERLOADED)
        with self._hold.push(worker, push.step):
            if request.session:
                return await self._gate.push(
                    request.session, request.members, push, request.process
                )
            return await self._shell.push(push)


def add_peer(server: grpc.aio.Server, service: PeerService) -> None:
    store_pb2_grpc.add_StorePeerServicer_to_server(service, server)  # type: ignore[no-untyped-call]
