"""What processes say: prefixed lines, readiness over HTTP, exit statuses."""

from __future__ import annotations

import asyncio
import io
import os

import pytest

from proa.local.logs import LogPrinter
from proa.local.ports import Ports
from proa.local.probe import Probe, probe
from proa.local.processes import describe_exit
from proa.local.session import Family, start_ticks


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_stand_behind_the_name_of_their_process() -> None:
    out = io.StringIO()
    printer = LogPrinter(out)
    printer("worker-2", "ready")
    printer("decoder", "ready")
    assert out.getvalue() == "worker-2  | ready\ndecoder   | ready\n"


@pytest.mark.skipif("NO_COLOR" in os.environ, reason="no colours asked for")
def test_on_a_terminal_each_process_has_its_colour() -> None:
    out = Terminal()
    printer = LogPrinter(out)
    for name in ("worker-0", "worker-1", "worker-0"):
        printer(name, "line")
    first, second, third = out.getvalue().splitlines()
    assert first == third
    assert first.startswith("\x1b[36m")
    assert not second.startswith("\x1b[36m")
    assert first.endswith("\x1b[0m line")


async def answer_with(answer: bytes, port: int) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nready\n", Probe(200, "ready")),
        (b"HTTP/1.0 503 Unavailable\r\nX: y\r\n\r\nno worker", Probe(503, "no worker")),
        (b"SSH-2.0-OpenSSH", Probe(0, "the answer is not HTTP")),
        (b"", Probe(0, "the answer is not HTTP")),
    ],
)
async def test_a_probe_tells_what_was_answered(answer: bytes, expected: Probe) -> None:
    port = Ports().free()
    async with await answer_with(answer, port):
        assert await probe(port, "/readyz", timeout_s=5.0) == expected


async def test_a_probe_of_nobody_and_of_a_silent_one_says_so() -> None:
    port = Ports().free()
    found = await probe(port, "/readyz", timeout_s=5.0)
    assert found.status == 0
    assert str(port) in found.text

    async def listen_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side gives up
        writer.close()

    async with await asyncio.start_server(listen_only, "127.0.0.1", port):
        found = await probe(port, "/livez", timeout_s=0.05)
    assert found == Probe(0, f"no answer on port {port} within 0.05 s")


def test_exits_are_described() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-9) == "killed by SIGKILL"


def test_a_process_is_found_in_its_session() -> None:
    assert os.getpid() in [member.pid for member in Family(os.getsid(0)).members()]
    assert start_ticks(os.getpid()) is not None
    assert start_ticks(2**22 + 1) is None
