"""The admin port: livez from the heartbeat, readyz from the data path, metrics."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from fakes.eventually import eventually_sync
from proa.errors import EnvironmentLacks
from proa.runtime.admin import BEAT_S_MAX, CONNECTIONS_MAX, Admin


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def admin(clock):
    registry = CollectorRegistry()
    Counter("proa_test_things", "Things", registry=registry).inc(3)
    admin = Admin(0, registry, "127.0.0.1", now=clock)
    admin.start()
    yield admin
    admin.stop()


def get(admin, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_livez_fails_without_a_heartbeat(admin, clock):
    clock.now += BEAT_S_MAX
    assert get(admin, "/livez") == (200, "ok\n")
    clock.now += 2.0
    assert get(admin, "/livez") == (503, "no heartbeat for 12.0 s\n")
    admin.beat()
    assert get(admin, "/livez") == (200, "ok\n")


def test_readyz_says_why_not(admin):
    assert get(admin, "/readyz") == (503, "starting\n")
    admin.set_ready(True)
    assert get(admin, "/readyz?verbose") == (200, "ok\n")
    admin.set_ready(False, "draining")
    assert get(admin, "/readyz") == (503, "draining\n")


def test_metrics_are_those_of_the_registry(admin):
    status, text = get(admin, "/metrics")
    assert status == 200
    assert "proa_test_things_total 3.0" in text


def test_there_is_nothing_else(admin):
    assert get(admin, "/")[0] == 404


def test_a_taken_port_is_named(admin):
    other = Admin(admin.port, CollectorRegistry(), "127.0.0.1")
    with pytest.raises(EnvironmentLacks, match=f"127.0.0.1:{admin.port}"):
        other.start()


def test_start_and_stop_may_be_repeated(admin):
    port = admin.port
    admin.start()
    assert admin.port == port
    admin.stop()
    admin.stop()


def test_connections_have_a_limit_and_the_oldest_gives_way(admin):
    """Who holds many and says nothing does not keep the kubelet out."""
    target = ("127.0.0.1", admin.port)
    admin.set_ready(True)
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(target, 5)) for _ in range(CONNECTIONS_MAX)
        ]
        eventually_sync(lambda: len(admin._server._open) == CONNECTIONS_MAX)
        assert get(admin, "/readyz") == (200, "ok\n")
        assert idle[0].recv(1) == b""
        idle[1].sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert idle[1].recv(12) == b"HTTP/1.0 200"
    eventually_sync(lambda: reachable(admin))


def test_a_page_that_fails_is_an_error_and_no_end(clock):
    def broken(_request):
        raise KeyError("x")

    admin = Admin(0, CollectorRegistry(), "127.0.0.1", now=clock, pages=broken)
    admin.start()
    try:
        assert get(admin, "/any") == (500, "500 Internal Server Error\n")
        assert get(admin, "/livez") == (200, "ok\n")
    finally:
        admin.stop()


def reachable(admin):
    try:
        return get(admin, "/readyz") == (200, "ok\n")
    except OSError:
        return False
