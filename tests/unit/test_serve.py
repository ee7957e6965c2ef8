"""serve and run: ready last, unready first, drain, and what ends a process."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from fakes.eventually import eventually
from proa import rpc
from proa.errors import EnvironmentLacks, ProaError, Unavailable
from proa.runtime.admin import Admin
from proa.runtime.log import LineFormatter
from proa.runtime.selfcheck import keep_checking
from proa.runtime.serve import serve
from proa.runtime.server import listen, make_health, make_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """A served process inside the test: method /t/Wait answers when `release` is set."""

    def __init__(self):
        self.ready = asyncio.Event()
        self.release = asyncio.Event()
        self.waiting = 0
        self.admin = Admin(0, CollectorRegistry(), "127.0.0.1")
        self.roots = {}

    async def wait(self, request, context):
        self.waiting += 1
        await self.release.wait()
        return request

    async def start(self, *, grace_s=10.0, drain_s=0.0):
        self.server = make_server(message_bytes_max=1 << 20, calls_max=16)
        handlers = {"Wait": grpc.unary_unary_rpc_method_handler(self.wait)}
        generic = grpc.method_handlers_generic_handler("t", handlers)
        self.server.add_generic_rpc_handlers((generic,))
        health = await make_health(self.server)
        self.port = listen(self.server, "127.0.0.1", 0)
        self.channel = rpc.connect(f"127.0.0.1:{self.port}", message_bytes_max=1 << 20)
        self.task = asyncio.create_task(
            serve(
                self.server,
                health=health,
                admin=self.admin,
                roots=self.roots,
                ready=self.ready,
                grace_s=grace_s,
                drain_s=drain_s,
            )
        )

    def call(self):
        return asyncio.ensure_future(self.channel.unary_unary("/t/Wait")(b"x", timeout=20))

    async def health(self):
        stub = health_pb2_grpc.HealthStub(self.channel)
        found = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
        return found.status

    @property
    def admin_ready(self):
        return self.admin._ready[0]


@pytest.fixture
async def process():
    process = Process()
    yield process
    process.release.set()
    process.task.cancel()
    await asyncio.gather(process.task, return_exceptions=True)
    await process.channel.close(None)


async def never():
    await asyncio.Event().wait()


async def test_no_task_waits_for_each_method(process):
    """grpc would look through all of them at the beginning of every call."""
    await process.start()
    assert await process.health() == NOT_SERVING
    assert not [task for task in asyncio.all_tasks() if "registered" in repr(task)]


async def test_ready_is_announced_when_the_data_path_is(process):
    process.roots = {"never": never()}
    await process.start()
    assert await process.health() == NOT_SERVING
    assert not process.admin_ready
    process.ready.set()
    await eventually(lambda: process.admin_ready)
    assert await process.health() == SERVING
    process.ready.clear()
    await eventually(lambda: not process.admin_ready)
    assert await process.health() == NOT_SERVING


async def test_a_draining_process_is_unready_and_serves_on(process):
    process.ready.set()
    await process.start(drain_s=600.0)
    await eventually(lambda: process.admin_ready)
    process.task.cancel()
    await eventually(lambda: not process.admin_ready)
    assert await process.health() == NOT_SERVING
    process.ready.clear()
    process.ready.set()
    process.release.set()
    assert await process.call() == b"x"
    assert not process.admin_ready
    process.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await process.task


async def test_a_root_that_fails_ends_the_process_without_a_drain(process):
    process.roots = {"broken": broken()}
    await process.start(drain_s=600.0)
    with pytest.raises(ProaError, match="root task 'broken' failed"):
        await process.task


async def broken():
    raise Unavailable("gone")


async def test_a_call_under_way_ends_before_the_process_does(process):
    process.ready.set()
    await process.start()
    call = process.call()
    watch = health_pb2_grpc.HealthStub(process.channel).Watch(health_pb2.HealthCheckRequest())
    await eventually(lambda: process.waiting == 1 and process.admin_ready)
    while (await watch.read()).status != SERVING:
        pass
    process.task.cancel()
    assert (await watch.read()).status == NOT_SERVING
    assert not process.admin_ready
    watch.cancel()
    assert not process.task.done()
    assert not call.done()
    process.release.set()
    assert await call == b"x"
    with pytest.raises(asyncio.CancelledError):
        await process.task


async def test_a_drain_ends_after_the_grace(process):
    await process.start(grace_s=0.05)
    call = process.call()
    await eventually(lambda: process.waiting == 1)
    process.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await process.task
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_roots_are_cancelled_last(process):
    ends = []

    async def root():
        try:
            await never()
        finally:
            ends.append(process.call_done)

    process.roots = {"root": root()}
    process.call_done = False
    await process.start()
    call = process.call()
    call.add_done_callback(lambda _: setattr(process, "call_done", True))
    await eventually(lambda: process.waiting == 1)
    process.task.cancel()
    process.release.set()
    await asyncio.gather(process.task, return_exceptions=True)
    assert await call == b"x"
    assert len(ends) == 1


async def returns():
    return None


async def fails():
    raise Unavailable("the sea is gone")


async def breaks():
    raise ValueError("a bug")


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (returns, "root task 'short' returned; it must never"),
        (fails, "root task 'short' failed: the sea is gone"),
        (breaks, "root task 'short' failed: a bug"),
    ],
)
async def test_a_root_that_ends_ends_the_process(process, root, message):
    process.roots = {"long": never(), "short": root()}
    await process.start()
    with pytest.raises(ProaError) as caught:
        await process.task
    assert str(caught.value) == message


async def test_a_taken_admin_port_ends_the_start(process):
    other = Admin(0, CollectorRegistry(), "127.0.0.1")
    other.start()
    process.admin = Admin(other.port, CollectorRegistry(), "127.0.0.1")
    process.roots = {"never": never()}
    await process.start()
    with pytest.raises(EnvironmentLacks, match="admin port"):
        await process.task
    other.stop()


async def test_a_taken_port_is_named(process):
    await process.start()
    with pytest.raises(EnvironmentLacks, match=f"127.0.0.1:{process.port}"):
        listen(make_server(message_bytes_max=1024, calls_max=1), "127.0.0.1", process.port)


async def test_readiness_follows_the_check(caplog):
    ready, failing = asyncio.Event(), [True]

    async def check():
        if failing[0]:
            raise Unavailable("no worker")

    task = asyncio.create_task(keep_checking(check, ready, interval_s=0.001))
    await eventually(lambda: "no worker" in caplog.text)
    assert not ready.is_set()
    failing[0] = False
    await asyncio.wait_for(ready.wait(), 5)
    failing[0] = True
    await eventually(lambda: not ready.is_set())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert caplog.text.count("no worker") == 2


def python(code, **environ):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


RUN = """
    import asyncio, os, signal, sys
    from proa.errors import SettingsError, Unavailable
    from proa.runtime.serve import run
    async def main():
        {body}
    sys.exit(run(main, service="boat"))
"""


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return", 0, ""),
        ("raise SettingsError('PROA_X=1 is bad')", 2, "ERROR boat  PROA_X=1 is bad\n"),
        ("raise Unavailable('root task x returned')", 1, "ERROR boat  root task x returned\n"),
        ("raise ValueError('a bug')", 1, "Traceback"),
        ("os.kill(os.getpid(), signal.SIGTERM); await asyncio.sleep(30)", 0, "signal=SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGINT); await asyncio.sleep(30)", 0, "signal=SIGINT"),
        ("raise asyncio.CancelledError", 1, ""),
    ],
)
def test_exit_codes(body, code, text):
    done = python(RUN.format(body=body))
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr


def test_a_bad_log_level_is_a_usage_error():
    done = python(RUN.format(body="return"), PROA_LOG_LEVEL="LOUD")
    assert done.returncode == 2
    assert "PROA_LOG_LEVEL='LOUD' is not one of DEBUG" in done.stderr


def test_a_log_is_one_line():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "a\nb key=%d", (7,), None)
    record.created = 3661.5
    assert LineFormatter("encoder").format(record) == "01:01:01.500 INFO  encoder  a\\nb key=7"
