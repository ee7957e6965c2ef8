"""The real thing: tritonserver workers, encoder, decoder and frontend as processes, under load.

Any one process is killed or frozen at 100 requests a second; no request may fail, every answer is
right, and the process comes back and is used again.
"""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request

import numpy as np
import pytest
import pytest_asyncio
import torch
import tritonclient.grpc as triton

from fakes.eventually import eventually
from fakes.programs import INPUT, Linear, write_tiny_spec
from proa.api.v1 import frontend_pb2
from proa.client import AsyncClient
from proa.load import Outcome, poisson_schedule, run_open_loop
from proa.local.embedded import embedded
from proa.local.processes import State
from proa.local.topology import Options
from proa.rpc import connect

pytestmark = [
    pytest.mark.alone,
    pytest.mark.triton,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

WORKERS = 4
RATE_HZ, LOAD_S = 100.0, 4.0
FAULT_AT = int(RATE_HZ * 0.5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("e2e")
    options = Options(run_dir=folder / "run", port=0, admin_port=0, workers=WORKERS, service_ms=5.0)
    lines = []
    async with embedded(
        [write_tiny_spec(folder)], options, sink=lambda name, line: lines.append(f"{name} | {line}")
    ) as found:
        try:
            await found.supervisor.ready()
            yield found
        except BaseException:
            print("\n".join(lines[-60:]))
            raise


async def status(running):
    """One report of the frontend on its only model."""
    channel = connect(running.topology.address, message_bytes_max=1 << 20)
    call = channel.unary_stream(
        "/proa.api.v1.Frontend/Status",
        request_serializer=frontend_pb2.StatusRequest.SerializeToString,
        response_deserializer=frontend_pb2.StatusReport.FromString,
    )(frontend_pb2.StatusRequest(), timeout=5)
    report = await call.read()
    call.cancel()
    await channel.close()
    return report.models[0]


async def all_up(running):
    """Wait until the frontend uses all workers."""
    for _ in range(600):
        workers = (await status(running)).workers
        if len(workers) == WORKERS and all(w.state == "up" for w in workers):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"workers did not come back: {workers}")


async def under_load(running, fault):
    """Open-loop load; `fault` happens half a second into it. The records, answers checked."""
    rng = np.random.default_rng(5)
    queries = rng.random((64, 1, *INPUT.shape), dtype=np.float32)
    with torch.no_grad():
        want = [Linear()(torch.from_numpy(q)).numpy() for q in queries]
    async with AsyncClient(running.topology.address, deadline_s=2.0) as client:

        async def send(index):
            if index == FAULT_AT:
                fault()
            answer = await client.infer("tiny", queries[index % 64])
            np.testing.assert_allclose(answer["logits"], want[index % 64], rtol=1e-3, atol=1e-3)
            return Outcome(True, answer.source, "", None)

        schedule = poisson_schedule(RATE_HZ, LOAD_S, seed=3)
        return await run_open_loop(send, schedule, inflight_max=1000)


async def test_an_unmodified_triton_client_gets_the_model_s_answer(running):
    await all_up(running)
    query = np.random.default_rng(1).random((2, *INPUT.shape), dtype=np.float32)
    with torch.no_grad():
        want = Linear()(torch.from_numpy(query)).numpy()

    def ask():
        with triton.InferenceServerClient(running.topology.address) as client:
            tensor = triton.InferInput("image", query.shape, "FP32")
            tensor.set_data_from_numpy(query)
            return client.infer("tiny", [tensor])

    answer = await asyncio.to_thread(ask)
    np.testing.assert_allclose(answer.as_numpy("logits"), want, rtol=1e-5, atol=1e-6)
    assert answer.get_response().parameters["proa.source"].string_param == "worker"


async def test_queries_wait_at_busy_workers_and_are_answered_right(running):
    await all_up(running)
    rng = np.random.default_rng(6)
    queries = rng.random((8 * WORKERS, 1, *INPUT.shape), dtype=np.float32)
    with torch.no_grad():
        want = [Linear()(torch.from_numpy(q)).numpy() for q in queries]
    async with AsyncClient(running.topology.address, deadline_s=2.0) as client:
        for _ in range(10):
            answers = await asyncio.gather(*(client.infer("tiny", query) for query in queries))
            for answer, right in zip(answers, want, strict=True):
                np.testing.assert_allclose(answer["logits"], right, rtol=1e-3, atol=1e-3)
    url = f"http://{running.topology.admin_address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    (sent,) = re.findall(r'^proa_tied_queries_total{event="sent",model="tiny"} (\S+)$', text, re.M)
    assert float(sent) > len(queries)


def incarnation(running, name):
    """How often the process was started, and whether it is ready."""
    return next(p for p in running.supervisor.status() if p.name == name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
@pytest.mark.parametrize("name", ["worker-1", "encoder", "decoder"])
async def test_no_request_fails_when_a_process_dies_or_freezes(running, name, number):
    await all_up(running)
    before = incarnation(running, name).pid
    records = await under_load(running, lambda: running.supervisor.kill(name, number))
    failed = [r for r in records if not r.ok]
    assert not failed, f"{len(failed)} of {len(records)} failed: {failed[:3]}"
    await eventually(
        lambda: (
            incarnation(running, name).pid not in (None, before)
            and incarnation(running, name).state is State.READY
        ),
        timeout_s=60,
    )
    await all_up(running)
    if name.startswith("worker"):
        answered = {w.name: w.answered for w in (await status(running)).workers}
        await under_load(running, lambda: None)
        again = {w.name: w.answered for w in (await status(running)).workers}
        assert again[name] > answered[name], "the worker is back but not used"
