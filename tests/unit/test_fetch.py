"""Model files over real HTTP and through the real S3 client, from a server on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.eventually import eventually_sync
from fakes.file_server import FileServer
from proa.cluster.fetch import Place, fetch
from proa.cluster.settings import FetchSettings
from proa.errors import (
    DeadlinePassed,
    EnvironmentLacks,
    ProgramRefused,
    RequestCancelled,
    SettingsError,
    Unavailable,
    UnknownModel,
)

KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "s3cret"}


def archive(**files: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


ARCHIVE = archive(digits=b"program" * 1000)
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/models/digits.tgz": ARCHIVE}) as started:
        yield started


def settings(url: str, out: Path, **others: Any) -> FetchSettings:
    values = {"sha256": SHA256, "backoff_s": 0.0, "timeout_s": 5.0, **others}
    return FetchSettings(url=url, out=out, **values)


def s3(server: FileServer, out: Path, **others: Any) -> FetchSettings:
    fixed = {"s3_endpoint": server.url(""), "s3_region": "eu-north-1"}
    return settings("s3://models/digits.tgz", out, **fixed, **others)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("path", ["/models/digits.tgz", "/moved/models/digits.tgz"])
@pytest.mark.parametrize("chunked", [False, True])
def test_over_http(server: FileServer, tmp_path: Path, path: str, chunked: bool) -> None:
    server.chunked = chunked
    out = tmp_path / "models" / "digits"
    assert fetch(settings(server.url(path), out), {})
    assert (out / "digits").read_bytes() == b"program" * 1000
    assert left(out.parent) == {"digits", ".digits.sha256"}


def test_what_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    wanted = settings(server.url("/models/digits.tgz"), tmp_path / "digits")
    assert fetch(wanted, {})
    assert not fetch(wanted, {})
    assert len(server.seen) == 1


def test_another_archive_replaces_the_files(server: FileServer, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    fetch(settings(server.url("/models/digits.tgz"), out), {})
    server.files["/new"] = archive(better=b"")
    sha256 = hashlib.sha256(server.files["/new"]).hexdigest().upper()
    assert fetch(settings(server.url("/new"), out, sha256=sha256), {})
    assert left(out) == {"better"}
    assert left(tmp_path) == {"digits", ".digits.sha256"}


def test_a_wrong_checksum_names_both(server: FileServer, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(ProgramRefused, match=f"sha256 is {SHA256}, PROA_FETCH_SHA256 says {wrong}"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x", sha256=wrong), {})
    assert left(tmp_path) == set()


@pytest.mark.parametrize("trouble", [503, 429, "cut"])
def test_trouble_that_passes(server: FileServer, tmp_path: Path, trouble: int | str) -> None:
    server.script = deque([trouble, trouble])
    assert fetch(settings(server.url("/models/digits.tgz"), tmp_path / "digits"), {})
    assert len(server.seen) == 3


def test_trouble_that_stays(server: FileServer, tmp_path: Path) -> None:
    server.script = deque([500] * 10)
    with pytest.raises(Unavailable, match=r"/models/digits\.tgz: HTTP 500"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x", attempts_max=3), {})
    assert len(server.seen) == 3


def test_a_server_that_sends_nothing(server: FileServer, tmp_path: Path) -> None:
    server.script = deque(["stall", "stall"])
    short = {"attempts_max": 2, "timeout_s": 0.1}
    with pytest.raises(Unavailable, match="timed out"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x", **short), {})


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/x: .*[Cc]onnection refused"):
        fetch(settings("http://127.0.0.1:1/x", tmp_path / "x", attempts_max=1), {})


def test_time_for_all_tries_is_limited(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DeadlinePassed, match="PROA_FETCH_TOTAL_S_MAX=0 s"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x", total_s_max=0.0), {})


def test_told_to_stop(server: FileServer, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(RequestCancelled):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x"), {}, stop)
    assert left(tmp_path) == set()


def test_refusals_are_not_tried_again(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"/absent: HTTP 404"):
        fetch(settings(server.url("/absent?signature=secret"), tmp_path / "x"), {})
    server.script = deque([403])
    with pytest.raises(EnvironmentLacks, match="the credentials are missing or not enough"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x"), {})
    assert len(server.seen) == 2


def test_secrets_of_a_url_are_not_shown(server: FileServer, tmp_path: Path) -> None:
    url = server.url("/absent?signature=secret").replace("http://", "http://me:secret@")
    with pytest.raises(UnknownModel) as caught:
        fetch(settings(url, tmp_path / "x"), {})
    assert "secret" not in str(caught.value)
    assert server.seen[0][1]["authorization"].startswith("Basic ")


def test_an_archive_above_the_limit(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="is larger than PROA_FETCH_BYTES_MAX=20"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "x", bytes_max=20), {})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "the source 'ftp' is not known; known are http, https, s3"),
        ("digits.tgz", "the source '' is not known"),
        ("file:///etc/passwd", "the source 'file' is not known"),
        ("http://", "no host or bucket after http://"),
        ("http://host:port/", "PROA_FETCH_URL"),
        ("s3://bucket", "lacks the key"),
    ],
)
def test_urls_that_are_none(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        fetch(settings(url, tmp_path / "x"), {})


def test_a_checksum_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PROA_FETCH_SHA256='abc' is not 64 hexadecimal digits"):
        fetch(settings("http://host/x", tmp_path / "x", sha256="abc"), {})


def test_a_folder_of_somebody_else_stays(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(EnvironmentLacks, match="holds something that was not fetched"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path), {})
    assert server.seen == []


def put(place: Place, sha256: str, **files: bytes) -> None:
    place.check()
    with place.draft() as draft:
        made = draft / "files"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        place.put(made, sha256, draft)


@pytest.mark.parametrize("mounted", [False, True])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, mounted: bool) -> None:
    out = tmp_path / "digits"
    if mounted:
        (out / "lost+found").mkdir(parents=True)
    place = Place(out, mounted=mounted)
    assert not place.holds("1")
    put(place, "1", a=b"1", b=b"1")
    put(place, "2", a=b"2")
    assert place.holds("2")
    note, new = ".digits.sha256", {"lost+found"} if mounted else set()
    assert left(out) == {"a", *new, *([note] if mounted else [])}
    assert (out / "a").read_bytes() == b"2"
    # As after a kill in the middle of it: ours, and not complete.
    (out / note if mounted else tmp_path / note).write_text("")
    assert not place.holds("2")
    put(place, "3", c=b"3")
    assert place.holds("3")
    assert "a" not in left(out)


def test_a_disk_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentLacks, match="PROA_FETCH_OUT must be on a volume"):
        fetch(settings(server.url("/models/digits.tgz"), tmp_path / "file" / "x"), {})


def test_from_s3_with_a_signature(server: FileServer, tmp_path: Path) -> None:
    server.access_key = "reader"
    assert fetch(s3(server, tmp_path / "digits"), {**KEYS, "AWS_SESSION_TOKEN": "short-lived"})
    ((path, headers),) = server.seen
    assert path == "/models/digits.tgz"
    assert "/eu-north-1/s3/" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "short-lived"


def test_from_a_public_bucket(server: FileServer, tmp_path: Path) -> None:
    assert fetch(s3(server, tmp_path / "digits"), {})
    assert "Authorization" not in server.seen[0][1]


def test_s3_says_no(server: FileServer, tmp_path: Path) -> None:
    server.access_key = "somebody else"
    with pytest.raises(EnvironmentLacks, match="HTTP 403 AccessDenied: no such key"):
        fetch(s3(server, tmp_path / "x"), KEYS)
    server.access_key, server.files = None, {}
    with pytest.raises(UnknownModel, match="HTTP 404 NoSuchKey: not here"):
        fetch(s3(server, tmp_path / "x"), KEYS)
    assert len(server.seen) == 2


def test_s3_trouble_that_passes(server: FileServer, tmp_path: Path) -> None:
    server.script = deque([503, "cut"])
    assert fetch(s3(server, tmp_path / "digits"), KEYS)
    assert len(server.seen) == 3


@pytest.mark.parametrize("endpoint", ["bucket.example", "ftp://host", "http://host/path"])
def test_s3_endpoints_that_are_none(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PROA_FETCH_S3_ENDPOINT"):
        fetch(settings("s3://bucket/key", tmp_path / "x", s3_endpoint=endpoint), {})


def test_half_of_the_s3_credentials(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY go together"):
        fetch(settings("s3://bucket/key", tmp_path / "x"), {"AWS_ACCESS_KEY_ID": "reader"})


def test_the_process_ends_when_told_to(server: FileServer, tmp_path: Path) -> None:
    """A stalled server must not hold up the end of the pod for longer than its timeout."""
    server.script = deque(["stall"] * 100)
    environment = {
        **os.environ,
        "PROA_FETCH_URL": server.url("/models/digits.tgz"),
        "PROA_FETCH_SHA256": SHA256,
        "PROA_FETCH_OUT": str(tmp_path / "digits"),
        "PROA_FETCH_TIMEOUT_S": "0.5",
        "PROA_FETCH_ATTEMPTS_MAX": "100",
    }
    command = [sys.executable, "-m", "proa.entry", "fetch"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        eventually_sync(lambda: server.seen)
        process.terminate()
        assert process.wait(10) == 0
    assert left(tmp_path) == set()
