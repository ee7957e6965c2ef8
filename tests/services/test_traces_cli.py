"""`proa trace` as it is typed: spans come in over HTTP, pictures and exit codes come out."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from fakes import stories
from fakes.eventually import eventually_sync
from fakes.worker_process import free_ports
from proa.cli import trace as trace_verb
from proa.cli.main import build_parser, main
from proa.traces.book import Book
from proa.traces.spans import Span

GIVEN_UP_S = "60"


class Trace:
    """`proa trace` on a thread, with ports of its own."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self.port, grpc_port = free_ports(2)
        self._argv = [
            "trace", "--settle", "0.3", "--wait", GIVEN_UP_S, "--out", str(out),
            "--port", str(self.port), "--grpc-port", str(grpc_port), *arguments,
        ]  # fmt: skip
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        eventually_sync(self._listens, timeout_s=30)

    def _run(self) -> None:
        self.code = main(self._argv)

    def _listens(self) -> bool:
        try:
            return self.post([]) == 200
        except OSError:
            return False

    def post(self, spans: Iterable[Span]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        body = json.dumps(stories.standard_json(list(spans))).encode()
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    def end(self) -> int | None:
        self._thread.join(60)
        return self.code


def test_the_next_request_is_drawn_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = Trace(tmp_path, "--want", "reconstructed")
    request, *rest = stories.reconstructed()
    assert trace.post(rest) == 200
    assert trace.post([request]) == 200
    assert trace.end() == 0
    out, err = capsys.readouterr()
    assert out.startswith("reconstructed from group 17 (k=2): w2 was late, parity row 0 on w3")
    assert f"page: {tmp_path / 'trace.html'}" in out
    assert f"http://127.0.0.1:{trace.port}" in err
    assert "reconstructed from group 17" in (tmp_path / "trace.html").read_text(encoding="utf-8")


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = Trace(tmp_path, "--json", "--id", stories.MEMBER.upper()[:9])
    trace.post(stories.reconstructed())
    assert trace.end() == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["trace_id"] == stories.MEMBER
    assert tree["page"] == str(tmp_path / "trace.html")


def watched(tmp_path: Path, *arguments: str) -> int:
    """The exit code of a watch whose spans came long ago and that does not wait."""
    argv = ["trace", "--wait", "0", "--out", str(tmp_path), *arguments]
    book = Book()
    book.add(stories.reconstructed(), 0.0)
    return asyncio.run(trace_verb._watch(build_parser().parse_args(argv), book))


@pytest.mark.parametrize("follow", ["--list", "--follow"])
def test_listing_and_following_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], follow: str
) -> None:
    assert watched(tmp_path, follow) == 0
    out = capsys.readouterr().out
    assert "reconstructed from group 17" in out
    assert "answered by w1 after 23.3 ms" in out
    assert (len(out.splitlines()) == 2) == (follow == "--list")


def test_a_list_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watched(tmp_path, "--list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == ["reconstructed", "worker"]


def test_nothing_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["trace", "--port", "0", "--grpc-port", "0", "--wait", "0", "--out", str(tmp_path)])
    assert code == 1
    assert "nothing to draw within 0 s: no span came yet" in capsys.readouterr().err


def test_nothing_wanted_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watched(tmp_path, "--want", "hedge") == 1
    assert "2 requests in 14 spans, none of them hedge" in capsys.readouterr().err


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--want", "all"], ["--id", "xyz"], ["--wait", "-1"], ["--port", "99999"]):
        with pytest.raises(SystemExit) as caught:
            main(["trace", *wrong])
        assert caught.value.code == 2
    (tmp_path / "file").write_text("")
    assert main(["trace", "--port", "0", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out" in capsys.readouterr().err
