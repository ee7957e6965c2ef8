"""`proa infer` and `proa status` against servers on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from fakes.oip_fake import RECONSTRUCT, FakeServer, serving
from proa.api.v1 import frontend_pb2, frontend_pb2_grpc
from proa.cli.main import main


async def proa(*argv: str) -> int:
    return await asyncio.to_thread(main, argv)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as fake:
        yield fake


async def test_infer_sends_a_random_query_of_the_right_shape(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await proa("infer", "double", "--random", "--json", "--address", server.address) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["worker"], found["group"]) == ("worker", "worker-1", 7)
    assert found["abft"] == "repaired"
    assert found["outputs"]["y"]["shape"] == [1, 2]
    assert found["latency_ms"] > 0
    assert await proa("infer", "double", "--random", "--json", "--address", server.address) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["outputs"] == found["outputs"], "the default seed is fixed"


async def test_infer_reads_npy_adds_the_batch_axis_and_saves_the_answer(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0], np.float32))
    query = ("--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npz"))
    assert await proa("infer", "double", *query, "--address", server.address) == 0
    assert np.load(tmp_path / "y.npz")["y"].tolist() == [[2.0, 4.0]]
    out = capsys.readouterr().out
    assert "source worker, worker worker-1, group 7, matrix products repaired" in out
    assert "[[2. 4.]]" in out


async def test_infer_reads_npz_and_says_when_the_answer_is_reconstructed(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[RECONSTRUCT, 2.0]], np.float32))
    query = ("--input", str(tmp_path / "x.npz"), "--address", server.address)
    assert await proa("infer", "double", *query) == 0
    assert "an approximation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "content", "code", "message"),
    [
        ("double", b"not numpy", 2, "not an .npy or .npz file"),
        ("double", None, 2, "No such file"),
        ("sum", np.zeros((1, 2), np.float32), 2, "several inputs; save an .npz with a, b"),
        ("nobody", np.zeros((1, 2), np.float32), 1, "no model 'nobody'"),
    ],
)
async def test_a_query_that_cannot_be_sent_is_one_line_on_stderr(
    server: FakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    content: bytes | np.ndarray[Any, Any] | None,
    code: int,
    message: str,
) -> None:
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    query = ("--input", str(path), "--address", server.address)
    assert await proa("infer", model, *query) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


async def test_infer_passes_exact_and_policy_on(server: FakeServer) -> None:
    options = ("--random", "--exact", "--policy", "hedge", "--address", server.address)
    assert await proa("infer", "double", *options) == 0
    parameters = server.requests[-1].parameters
    assert parameters["proa.exact"].bool_param
    assert parameters["proa.policy"].string_param == "hedge"


async def test_infer_asks_for_a_drill(server: FakeServer) -> None:
    options = ("--random", "--reconstruct", "--address", server.address)
    assert await proa("infer", "double", *options) == 0
    assert server.requests[-1].parameters["proa.reconstruct"].bool_param


class Frontend(frontend_pb2_grpc.FrontendServicer):  # type: ignore[misc]
    """Reports that count, `last` of them."""

    def __init__(self, last: int) -> None:
        self.last = last

    async def Status(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for i in range(self.last):
            yield frontend_pb2.StatusReport(
                unix_ms=i,
                models=[
                    frontend_pb2.ModelStatus(
                        name="digits",
                        mode="enforce",
                        policy="auto",
                        policy_in_force="hedge",
                        why="agreement below 0.9",
                        answers={"worker": 90, "reconstructed": 10},
                        redundant_sent=25,
                        p99_ms=31.25,
                        agreement=0.97,
                        agreement_samples=60,
                        workers=[
                            frontend_pb2.WorkerStatus(
                                name="worker-0", state="up", roles=["deployed", "parity.0"]
                            )
                        ],
                    )
                ],
            )


@pytest.fixture
async def frontend() -> AsyncIterator[str]:
    server = grpc.aio.server()
    frontend_pb2_grpc.add_FrontendServicer_to_server(Frontend(3), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_status_shows_a_table_once(frontend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await proa("status", "--address", frontend) == 0
    out = capsys.readouterr().out
    for word in ("digits", "25.0%", "31.2", "worker-0", "parity.0", "agreement below 0.9"):
        assert word in out


async def test_status_as_json_is_the_report(
    frontend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await proa("status", "--json", "--address", frontend) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["run"] is None
    assert found["report"]["models"][0]["answers"] == {"worker": "90", "reconstructed": "10"}


async def test_status_watches_until_the_frontend_leaves(
    frontend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await proa("status", "--json", "--watch", "--address", frontend) == 0
    reports = [json.loads(line)["report"] for line in capsys.readouterr().out.splitlines()]
    assert [report["unix_ms"] for report in reports] == ["0", "1", "2"]


async def test_status_of_nobody_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert await proa("status", "--address", "127.0.0.1:1") == 1
    assert "frontend 127.0.0.1:1" in capsys.readouterr().err
