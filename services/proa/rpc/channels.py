"""Channels to other services and the options of servers: limits, keepalive, TLS."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict

import grpc.aio

from proa.errors import InvalidRequest
from proa.rpc.tls import WORKER, ChannelTls, PeerTls, open_channel

KEEPALIVE_TIME_MS = 1_000
KEEPALIVE_TIMEOUT_MS = 2_000
RECONNECT_BACKOFF_MS_MAX = 1_000
# For calls that may run twice. CANCELLED is what a server that stops says of a call just begun.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
RETRY_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_retries", 1),
    (
        "grpc.service_config",
        json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY}]}),
    ),
)

METADATA_BYTES_MAX = 16 << 10  # of one call, all headers together
HANDSHAKE_MS_MAX = 10_000  # who connects and says nothing
IDLE_MS_MAX = 15 * 60_000  # a connection without calls; gRPC makes a new one at the next
CONNECTIONS_MAX = 10_000

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\]):(?P<port>\d{{1,5}})")
_ADDRESS_CHARS_MAX = 260


def check_address(address: str) -> str:
    """`address` if it is host:port (DNS name, IPv4, [IPv6]). Errors: InvalidRequest.

    Nothing else passes: gRPC would also take `unix:/path` or `xds:name` for an address.
    """
    found = _ADDRESS.fullmatch(address) if len(address) <= _ADDRESS_CHARS_MAX else None
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise InvalidRequest(f"address {address[:80]!r} is not host:port with a port 1 to 65535")
    return address


def connect(
    address: str, *, message_bytes_max: int, tls: ChannelTls | None = None, retry: bool = False
) -> grpc.aio.Channel:
    """A channel to `address` (host:port), one connection of its own; connects at the first call.

    A peer that is frozen or unplugged is noticed within 3 s even in the middle of a call, which
    needs servers that accept such pings (`server_options`). `retry`: a call that finds nobody, or
    whose server stops, is made again within its deadline. Errors: InvalidRequest.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Pings that measure bandwidth hold back the keepalive ones: both need the short timeout.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
        *(RETRY_OPTIONS if retry else ()),
    ]
    return open_channel(check_address(address), tls, options)


def server_options(message_bytes_max: int) -> list[tuple[str, int]]:
    """Options of a grpc.aio.server: limits, the pings of `connect`, one server per port."""
    return [
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
        ("grpc.max_connection_idle_ms", IDLE_MS_MAX),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


class Channels:
    """Open channels by address, the least recently used one closed beyond `channels_max`.

    A channel is valid until the next await of its user; calls that are under way when it is pushed
    out have `grace_s` to end. With `tls`, all are pushed out when our certificate was renewed.
    """

    def __init__(
        self,
        *,
        message_bytes_max: int,
        channels_max: int = 256,
        grace_s: float = 30.0,
        tls: PeerTls | None = None,
    ) -> None:
        self._message_bytes_max = message_bytes_max
        self._channels_max = channels_max
        self._grace_s = grace_s
        self._tls = tls
        self._version = tls.version if tls else 0
        self._open: OrderedDict[tuple[str, str], grpc.aio.Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, address: str, role: str = WORKER) -> grpc.aio.Channel:
        """The channel to `address`, where a service of `role` is. Errors: InvalidRequest."""
        if self._tls is not None and self._tls.version != self._version:
            self._version = self._tls.version
            self._push_out_all()
        key = (address, role)
        channel = self._open.get(key)
        if channel is None:
            tls = self._tls.channel(role) if self._tls else None
            channel = connect(address, message_bytes_max=self._message_bytes_max, tls=tls)
            self._open[key] = channel
            if len(self._open) > self._channels_max:
                self._push_out(self._open.popitem(last=False)[1])
        self._open.move_to_end(key)
        return channel

    def __len__(self) -> int:
        return len(self._open)

    def forget(self, address: str) -> None:
        """Nobody is at `address` any more: its channels would try to connect for ever."""
        for key in [key for key in self._open if key[0] == address]:
            self._push_out(self._open.pop(key))

    async def close(self) -> None:
        """Close all channels at once; calls under way are cancelled."""
        for task in self._closing:
            task.cancel()
        channels, self._open = list(self._open.values()), OrderedDict()
        await asyncio.gather(
            *(channel.close(None) for channel in channels), *self._closing, return_exceptions=True
        )

    def _push_out_all(self) -> None:
        channels, self._open = list(self._open.values()), OrderedDict()
        for channel in channels:
            self._push_out(channel)

    def _push_out(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close(self._grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
