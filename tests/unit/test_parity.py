"""ParityRunner against the fake worker, and reconstruction of what it returns."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images, linear
from proa import parity, rpc
from proa.codes import make_code
from proa.errors import (
    BadAnswer,
    DeadlinePassed,
    InvalidRequest,
    TooManyErasures,
    Unavailable,
    WrongGroup,
)

MIB = 1 << 20
EXACT = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
async def worker():
    async with FakeTriton(programs=("deployed", "parity.0", "parity.1", "parity.2")) as worker:
        yield worker


@pytest.fixture
async def channels():
    channels = rpc.Channels(message_bytes_max=64 * MIB)
    yield channels
    await channels.close()


@pytest.fixture
def runner(channels):
    return parity.ParityRunner(channels)


async def infer(runner, worker, code, queries, *, row=0, timeout_s=10.0, outputs=("logits",)):
    return await runner.infer_parity(
        model="digits",
        code=code,
        row=row,
        members=[{"image": query} for query in queries],
        outputs=outputs,
        worker=worker.address,
        timeout_s=timeout_s,
    )


@pytest.mark.parametrize(
    ("coder", "k", "r", "missing"),
    [("sum", 2, 1, [1]), ("sum", 4, 1, [0]), ("sum", 3, 2, [0, 2]), ("mean", 3, 1, [1]),
     ("sum", 16, 3, [3, 7, 15]), ("replica", 1, 2, [0])],
)  # fmt: skip
async def test_a_lost_prediction_is_reconstructed(worker, runner, coder, k, r, missing):
    code = make_code(coder, k, r)
    queries = images(k, batch=2)
    rows = {j: await infer(runner, worker, code, queries, row=j) for j in range(r)}
    have = {i: {"logits": linear(q)} for i, q in enumerate(queries) if i not in missing}
    found = parity.decode_outputs(code, have, rows, missing)
    assert sorted(found) == missing
    for i in missing:
        assert found[i]["logits"].dtype == np.float32
        np.testing.assert_allclose(found[i]["logits"], linear(queries[i]), rtol=2e-3, atol=2e-3)
    assert worker.computed == {f"parity.{j}": 1 for j in range(r)}


async def test_the_worker_gets_one_request_for_the_row(worker, runner):
    await infer(runner, worker, make_code("sum", 2, 2), images(2), row=1)
    (request,) = worker.seen
    assert request.parameters["proa.program"].string_param == "parity.1"
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("parity.image", "FP32", [1, 1, 8, 8])
    ]
    assert [output.name for output in request.outputs] == ["parity.logits"]


async def test_large_groups_are_encoded_off_the_loop():
    here = []
    loop = asyncio.get_running_loop()

    def step():
        here.append(asyncio._get_running_loop() is loop)

    await parity.off_loop(parity.LOOP_BYTES_MAX, step)
    await parity.off_loop(parity.LOOP_BYTES_MAX + 1, step)
    assert here == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[0], "has shape \\[10\\] for queries of batch"),
        (lambda y: np.concatenate([y, y]), "has shape \\[2, 10\\] for queries of batch"),
        (lambda y: y.astype(np.float64), "has dtype float64"),
        (lambda y: y * np.nan, "holds NaN or Inf"),
        (lambda y: y + np.inf, "holds NaN or Inf"),
    ],
)
async def test_a_wrong_answer_is_refused(worker, runner, change, message):
    worker.change = change
    with pytest.raises(BadAnswer, match=message):
        await infer(runner, worker, make_code("sum", 2, 1), images(2))


async def test_a_missing_output_is_a_bad_answer(worker, runner):
    with pytest.raises(BadAnswer, match="'votes' is missing"):
        await infer(runner, worker, make_code("sum", 2, 1), images(2), outputs=("votes",))


async def test_what_the_worker_says_is_passed_on(worker, runner):
    code = make_code("sum", 2, 1)
    worker.fail_next(1, "UNAVAILABLE")
    with pytest.raises(Unavailable, match=f"worker {worker.address}"):
        await infer(runner, worker, code, images(2))
    worker.fail_next(1, "INTERNAL")
    with pytest.raises(BadAnswer):
        await infer(runner, worker, code, images(2))
    await infer(runner, worker, code, images(2))


async def test_a_half_alive_worker_costs_the_deadline_no_more(worker, runner):
    worker.pause()
    with pytest.raises(DeadlinePassed):
        await infer(runner, worker, make_code("sum", 2, 1), images(2), timeout_s=0.1)
    await eventually(lambda: worker.cancelled == 1)
    worker.resume()
    await infer(runner, worker, make_code("sum", 2, 1), images(2))


async def test_a_dead_worker_is_unavailable_and_may_come_back(worker, runner, channels):
    code = make_code("sum", 2, 1)
    await infer(runner, worker, code, images(2))
    await worker.stop()
    with pytest.raises(Unavailable):
        await infer(runner, worker, code, images(2))
    await worker.start()
    await asyncio.wait_for(channels(worker.address).channel_ready(), 10)
    await infer(runner, worker, code, images(2))


async def test_a_bad_address_is_refused(runner):
    with pytest.raises(InvalidRequest, match="is not host:port"):
        await runner.run(
            model="m", row=0, query={}, outputs=[], worker="unix:/tmp/x", timeout_s=1.0
        )


def test_members_must_agree():
    code = make_code("sum", 2, 1)
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(WrongGroup, match="has 2 members, not 1"):
        parity.encode_members(code, [{"x": x}], 0)
    with pytest.raises(WrongGroup, match="member 1 has the tensors y; member 0 has x"):
        parity.encode_members(code, [{"x": x}, {"y": x}], 0)
    with pytest.raises(WrongGroup, match=r"tensor 'x': query 1 has shape \(2, 2\)"):
        parity.encode_members(code, [{"x": x}, {"x": np.zeros((2, 2))}], 0)
    with pytest.raises(WrongGroup, match="no tensors"):
        parity.encode_members(code, [{}, {}], 0)


def test_every_tensor_of_a_query_is_coded():
    code = make_code("sum", 2, 1)
    a = {"x": np.ones((1, 2), np.uint8), "y": np.full((1, 3), 2.0)}
    b = {"y": np.full((1, 3), 5.0), "x": np.full((1, 2), 255, np.uint8)}
    query = parity.encode_members(code, [a, b], 0)
    assert {name: array.tolist() for name, array in query.items()} == {
        "x": [[256.0, 256.0]],
        "y": [[7.0, 7.0, 7.0]],
    }
    found = parity.decode_outputs(code, {1: b}, {0: query}, [0])
    assert {name: array.tolist() for name, array in found[0].items()} == {
        "x": [[1.0, 1.0]],
        "y": [[2.0, 2.0, 2.0]],
    }


def test_decoding_refuses_what_does_not_fit():
    code = make_code("sum", 2, 1)
    x = {"x": np.zeros((1, 2), np.float32)}
    with pytest.raises(TooManyErasures):
        parity.decode_outputs(code, {}, {0: x}, [0, 1])
    with pytest.raises(WrongGroup, match="parity row 0 has the tensors z; prediction 0 has x"):
        parity.decode_outputs(code, {0: x}, {0: {"z": x["x"]}}, [1])
    with pytest.raises(WrongGroup, match="no tensors"):
        parity.decode_outputs(code, {}, {}, [0, 1])
    with pytest.raises(WrongGroup, match="tensor 'x'"):
        parity.decode_outputs(code, {0: x}, {0: {"x": np.zeros((3, 2))}}, [1])
