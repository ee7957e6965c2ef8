"""The client SDK: numpy in, numpy out, from any server of the Open Inference Protocol over gRPC.

    from proa.client import Client

    with Client("localhost:8001", deadline_s=0.5) as client:
        answer = client.infer("digits", images)  # images: (batch, 1, 8, 8) float32
        print(answer.only.argmax(axis=1), answer.source)

    Client("proa.example.com:8001", tls=Tls(ca="ca.crt"), token=secret)  # behind locks

`AsyncClient` has the same methods as coroutines. Every array has its batch axis. A failed call
raises one of these; each is chained to what gRPC said:

    ProaError
    ├── InvalidRequest     the request can be corrected: the message names the field and the limit
    ├── UnknownModel       no such model or version
    ├── NotSupported       the server does not offer this call
    ├── Overloaded         a limit was reached; try again after .retry_after_s seconds
    ├── Unauthenticated    the server wants a token: there is none, or a wrong one
    ├── PermissionDenied   the token is not for this model
    ├── DeadlinePassed     no answer in time
    ├── RequestCancelled   cancelled by the server
    ├── Unavailable        the server cannot be reached, or has no worker
    ├── BadAnswer          the server or a worker answered something impossible
    ├── ProgramRefused     the model cannot be served as it is
    └── CodingError
        └── TooManyErasures
"""

from __future__ import annotations

from proa.client.aio import AsyncClient
from proa.client.messages import CallOptions
from proa.client.sync import Client
from proa.client.values import Answer, Metadata, ModelInfo, TensorInfo
from proa.errors import (
    BadAnswer,
    CodingError,
    DeadlinePassed,
    InvalidRequest,
    NotSupported,
    Overloaded,
    PermissionDenied,
    ProaError,
    ProgramRefused,
    RequestCancelled,
    TooManyErasures,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from proa.rpc import Tls

__all__ = [
    "Answer",
    "AsyncClient",
    "BadAnswer",
    "CallOptions",
    "Client",
    "CodingError",
    "DeadlinePassed",
    "InvalidRequest",
    "Metadata",
    "ModelInfo",
    "NotSupported",
    "Overloaded",
    "PermissionDenied",
    "ProaError",
    "ProgramRefused",
    "RequestCancelled",
    "TensorInfo",
    "Tls",
    "TooManyErasures",
    "Unauthenticated",
    "Unavailable",
    "UnknownModel",
]
