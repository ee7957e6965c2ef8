"""rpc: errors to statuses and back over a real connection, addresses, channels."""

from __future__ import annotations

import asyncio
import inspect

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from proa import errors, rpc
from proa.errors import (
    BadAnswer,
    DataLost,
    InvalidRequest,
    Overloaded,
    ProaError,
    PushIndeterminate,
    RequestCancelled,
    ShardUnavailable,
    StaleMap,
    Unavailable,
)

MIB = 1 << 20


class Echo:
    """One unary and one streaming method over raw bytes; raises `error` if it is set."""

    def __init__(self):
        self.error = None

    @rpc.servicer_errors
    async def Unary(self, request, context):
        if request == b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "own words")
        if request == b"bad details":
            await context.abort(
                grpc.StatusCode.UNKNOWN, "own words", ((rpc.STATUS_KEY, b"\xff\xff"),)
            )
        if self.error is not None:
            raise self.error
        return request

    @rpc.servicer_stream_errors
    async def Stream(self, request, context):
        yield request
        if self.error is not None:
            raise self.error


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
async def address(echo):
    server = grpc.aio.server(options=rpc.server_options(MIB))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.Unary),
        "Stream": grpc.unary_stream_rpc_method_handler(echo.Stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def channel(address):
    async with rpc.connect(address, message_bytes_max=MIB) as channel:
        yield channel


async def call(channel, request=b"x", **options):
    async with rpc.peer_errors("echo"):
        return await channel.unary_unary("/t.Echo/Unary")(request, timeout=10, **options)


def all_errors():
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    return [one for one in found if issubclass(one, ProaError)]


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_has_a_status(cls):
    assert rpc.status_of(cls("x")).name == cls.status


def test_statuses_of_other_exceptions():
    assert rpc.status_of(ValueError()) is grpc.StatusCode.INTERNAL
    assert rpc.status_of(asyncio.CancelledError()) is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "cls",
    [
        errors.InvalidRequest,
        errors.UnknownModel,
        errors.NotSupported,
        errors.DeadlinePassed,
        errors.RequestCancelled,
        errors.Unavailable,
        errors.ProgramRefused,
        errors.TooManyErasures,
        errors.BadAnswer,
        errors.Overloaded,
    ],
)
async def test_errors_cross_the_wire(echo, channel, cls):
    echo.error = cls("k 17: the limit is 16")
    with pytest.raises(cls, match="echo: k 17: the limit is 16") as caught:
        await call(channel)
    assert type(caught.value) is cls
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)


async def test_overloaded_says_when_to_come_back(echo, channel):
    echo.error = Overloaded("full", retry_after_s=0.25)
    with pytest.raises(Overloaded) as caught:
        await call(channel)
    assert caught.value.retry_after_s == 0.25
    trailers = dict(caught.value.__cause__.trailing_metadata())
    assert trailers["grpc-retry-pushback-ms"] == "250"
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (status.code, status.message) == (8, "full")
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.ToMilliseconds() == 250


@pytest.mark.parametrize(
    "error",
    [
        ShardUnavailable("shard 3", retry_after_s=0.5),
        DataLost("gone", table="t", ids=(1, 1 << 40)),
        StaleMap("old", version=7),
        PushIndeterminate("who knows", step=12),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_of_the_store_keep_what_a_caller_needs(echo, channel, error):
    echo.error = error
    with pytest.raises(type(error)) as caught:
        await call(channel)
    assert str(caught.value) == f"echo: {error}"
    assert vars(caught.value) == vars(error)


async def test_of_many_lost_rows_as_many_are_named_as_a_header_holds(echo, channel):
    ids = tuple(range(1 << 62, (1 << 62) + 100_000))
    echo.error = DataLost("gone " * 1000, table="t" * 64, ids=ids)
    with pytest.raises(DataLost) as caught:
        await call(channel)
    assert caught.value.ids == ids[:256]


async def test_details_that_are_none_are_no_reason_to_fail(channel):
    with pytest.raises(BadAnswer, match="own words"):
        await call(channel, b"bad details")


async def test_an_unexpected_error_is_logged_and_not_told(echo, channel, caplog):
    echo.error = ValueError("secret path")
    with pytest.raises(BadAnswer) as caught:
        await call(channel)
    assert str(caught.value) == "echo: internal error"
    assert "secret path" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_handler_may_abort_by_itself(channel):
    with pytest.raises(BadAnswer, match="own words"):
        await call(channel, b"abort")


async def test_long_messages_are_cut(echo, channel):
    echo.error = InvalidRequest("x" * 100_000)
    with pytest.raises(InvalidRequest) as caught:
        await call(channel)
    assert len(str(caught.value)) < 1100


async def test_streams_map_errors_too(echo, channel):
    echo.error = Overloaded("full", retry_after_s=1.0)
    got = []

    async def receive():
        async with rpc.peer_errors("echo"):
            stream = channel.unary_stream("/t.Echo/Stream")(b"y", timeout=10)
            got.append(await stream.read())
            await stream.read()

    with pytest.raises(Overloaded, match="echo: full") as caught:
        await receive()
    assert got == [b"y"]
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
async def test_a_message_above_the_limit_is_no_overload(channel, size):
    with pytest.raises(InvalidRequest, match="larger than max"):
        await call(channel, b"x" * size)


async def test_nobody_there_and_closed_channels():
    channel = rpc.connect("127.0.0.1:1", message_bytes_max=MIB)
    with pytest.raises(Unavailable, match="echo"):
        await call(channel)
    await channel.close(None)
    with pytest.raises((Unavailable, RequestCancelled)):
        await call(channel)


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "a.b-c.svc.cluster.local:65535", "10.0.0.1:8001", "[::1]:8001", "unix:80"],
)
def test_addresses(address):
    assert rpc.check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", "host:", ":80", "host:0", "host:65536", "host:8x", "host:80/x", "-a:80"),
        *("unix:/tmp/x", "unix:///tmp/x", "dns:///host:80", "xds:///a", "http://host:80"),
        *("user@host:80", "ho st:80", "host:80\n", "::1:80", "[::1:80", "a..b:80", "é:80"),
        "a" * 300 + ":80",
    ],
)
def test_everything_else_is_refused(address):
    with pytest.raises(InvalidRequest, match="is not host:port"):
        rpc.connect(address, message_bytes_max=MIB)


async def test_channels_are_kept_and_bounded(address):
    channels = rpc.Channels(message_bytes_max=MIB, channels_max=2, grace_s=5.0)
    first = channels(address)
    assert channels(address) is first
    running = asyncio.ensure_future(call(first))
    channels("127.0.0.1:2")
    assert channels(address) is first
    channels("127.0.0.1:3")  # pushes out 127.0.0.1:2, the least recently used
    assert channels(address) is first
    channels("127.0.0.1:4")
    channels("127.0.0.1:5")  # pushes out the first, whose call goes on
    assert len(channels) == 2
    assert await running == b"x"
    assert channels(address) is not first
    await channels.close()
    assert len(channels) == 0
