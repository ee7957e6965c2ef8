"""Ports for the processes of the embedded mode."""

from __future__ import annotations

import socket

import pytest

from proa.errors import SettingsError
from proa.local.ports import HOST, Ports, is_free


def test_free_ports_differ_and_are_free() -> None:
    ports = Ports()
    found = [ports.free() for _ in range(20)]
    assert len(set(found)) == 20
    assert all(is_free(port) for port in found)


def test_free_ports_are_below_the_range_of_outgoing_connections() -> None:
    with socket.socket() as outgoing:
        outgoing.bind((HOST, 0))  # the kernel chooses from that range
        assert Ports().free() < outgoing.getsockname()[1]


def test_a_taken_port_is_refused_naming_port_and_flag() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"--port {port}: port {port} is taken .* --port"):
            Ports().claim(port, "--port")


def test_a_port_is_not_given_twice() -> None:
    ports = Ports()
    port = ports.free()
    with pytest.raises(SettingsError, match=f"--admin-port {port}: this port is used twice"):
        ports.claim(port, "--admin-port")


def test_port_0_is_any_free_one() -> None:
    assert Ports().claim(0, "--port") > 0


@pytest.mark.parametrize("port", [-1, 65_536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(SettingsError, match="a port is between 1 and 65535"):
        Ports().claim(port, "--port")
