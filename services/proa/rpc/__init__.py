"""gRPC at one border: channels, server options, TLS, and errors to and from statuses.

Nothing above this package catches grpc errors or names a StatusCode. Errors of a peer come out of
`peer_errors` as our own tree, chained; our own errors go out through `servicer_errors`.
"""

from __future__ import annotations

from proa.rpc.channels import (
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    RECONNECT_BACKOFF_MS_MAX,
    RETRY_OPTIONS,
    Channels,
    check_address,
    connect,
    server_options,
)
from proa.rpc.status import (
    DETAILS_CHARS_MAX,
    PUSHBACK_KEY,
    RETRY_AFTER_S_MAX,
    STATUS_KEY,
    Context,
    error_from,
    peer_errors,
    refuse,
    servicer_errors,
    servicer_stream_errors,
    status_of,
)
from proa.rpc.tls import (
    DECODER,
    ENCODER,
    FRONTEND,
    TOKEN_CHARS_MAX,
    WORKER,
    ChannelTls,
    Tls,
    bearer,
    open_channel,
    open_channel_sync,
    peer_name,
    reason_of,
)

__all__ = [
    "DECODER",
    "DETAILS_CHARS_MAX",
    "ENCODER",
    "FRONTEND",
    "KEEPALIVE_TIMEOUT_MS",
    "KEEPALIVE_TIME_MS",
    "PUSHBACK_KEY",
    "RECONNECT_BACKOFF_MS_MAX",
    "RETRY_AFTER_S_MAX",
    "RETRY_OPTIONS",
    "STATUS_KEY",
    "TOKEN_CHARS_MAX",
    "WORKER",
    "ChannelTls",
    "Channels",
    "Context",
    "Tls",
    "bearer",
    "check_address",
    "connect",
    "error_from",
    "open_channel",
    "open_channel_sync",
    "peer_errors",
    "peer_name",
    "reason_of",
    "refuse",
    "server_options",
    "servicer_errors",
    "servicer_stream_errors",
    "status_of",
]
