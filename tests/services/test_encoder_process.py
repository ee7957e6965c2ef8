"""`python -m proa.encoder`: a real process, its faults, its drain, its exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys

import pytest

from fakes.triton_fake import FakeTriton, images
from proa import rpc, wire
from proa.api.v1 import encoder_pb2, encoder_pb2_grpc, faults_pb2, faults_pb2_grpc, tensor_pb2
from proa.errors import Unavailable

MIB = 1 << 20


async def start(**settings):
    environ = {f"PROA_ENCODER_{name.upper()}": str(value) for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proa.encoder"),
        env={**os.environ, **environ},
        stderr=asyncio.subprocess.PIPE,
    )


async def read_until(process, pattern):
    """The first match of `pattern` in the process's log."""
    async with asyncio.timeout(30):
        while line := (await process.stderr.readline()).decode():
            if found := re.search(pattern, line):
                return found
    raise AssertionError(f"the log ended without {pattern}")


@pytest.fixture
async def process():
    process = await start(host="127.0.0.1", port=0, admin_port=0, faults="true", grace_s=10)
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_a_call_under_way_survives_sigterm(process):
    port = (await read_until(process, r"listening port=(\d+)"))[1]
    async with (
        FakeTriton() as worker,
        rpc.connect(f"127.0.0.1:{port}", message_bytes_max=MIB) as channel,
    ):
        await read_until(process, "ready")
        delay = faults_pb2.Fault(id="slow", kind=faults_pb2.DELAY, ttl_ms=60_000, delay_ms=700)
        faults = faults_pb2_grpc.FaultInjectorStub(channel)
        await faults.Inject(faults_pb2.InjectRequest(fault=delay), timeout=10)
        request = encoder_pb2.InferParityRequest(
            model="digits",
            code=tensor_pb2.Code(coder="sum", k=2, r=1),
            members=[encoder_pb2.Query(inputs=[wire.to_tensor("image", x)]) for x in images(2)],
            outputs=["logits"],
            worker=worker.address,
        )
        call = encoder_pb2_grpc.EncoderStub(channel).InferParity(request, timeout=20)
        await faults.List(faults_pb2.ListRequest(), timeout=10)  # the call is ahead of it
        process.send_signal(signal.SIGTERM)
        await read_until(process, "stopping signal=SIGTERM")
        assert [output.name for output in (await call).outputs] == ["logits"]
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_frozen_process_is_noticed_in_the_middle_of_a_call(process):
    port = (await read_until(process, r"listening port=(\d+)"))[1]
    async with rpc.connect(f"127.0.0.1:{port}", message_bytes_max=MIB) as channel:
        faults = faults_pb2_grpc.FaultInjectorStub(channel)
        await faults.List(faults_pb2.ListRequest(), timeout=10)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await list_faults(faults, timeout_s=60)


async def list_faults(faults, *, timeout_s):
    async with rpc.peer_errors("encoder"):
        await faults.List(faults_pb2.ListRequest(), timeout=timeout_s)


async def test_a_misspelt_setting_stops_the_start():
    process = await start(prot=1)
    _, log = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"PROA_ENCODER_PROT is not a setting; did you mean PROA_ENCODER_PORT?" in log
