"""Everything proa raises on purpose, in one tree.

    ProaError                      INTERNAL
    ├── SettingsError              INVALID_ARGUMENT    an environment variable or a flag
    ├── SpecError                  INVALID_ARGUMENT    the CodedModel file, with file and line
    ├── EnvironmentLacks           FAILED_PRECONDITION this machine misses something; names the fix
    ├── InvalidRequest             INVALID_ARGUMENT    a request a client can correct
    ├── UnknownModel               NOT_FOUND           no such model or version
    ├── NotSupported               UNIMPLEMENTED
    ├── Overloaded                 RESOURCE_EXHAUSTED  a limit was reached; has retry_after_s
    ├── Unauthenticated            UNAUTHENTICATED     no token, or a wrong one
    ├── PermissionDenied           PERMISSION_DENIED   a token that may not do this
    ├── DeadlinePassed             DEADLINE_EXCEEDED
    ├── RequestCancelled           CANCELLED
    ├── Unavailable                UNAVAILABLE         a peer is gone, or there is no worker
    │   └── ShardUnavailable       UNAVAILABLE         a shard of the store; has retry_after_s
    ├── DataLost                   DATA_LOSS           rows of a table that nothing can bring back
    ├── StaleMap                   ABORTED             a map of the store that was replaced
    ├── PushIndeterminate          UNKNOWN             written or not: the same push again tells
    ├── BadAnswer                  INTERNAL            a worker answered something impossible
    ├── ProgramRefused             FAILED_PRECONDITION a .pt2 or package we will not load
    └── CodingError                INTERNAL
        ├── WrongGroup             INVALID_ARGUMENT    sizes, shapes or rows unfit for the code
        └── TooManyErasures        DATA_LOSS           more missing predictions than parity rows

An error knows its status by name. Turning it into a gRPC status happens once, in `proa.rpc`.
"""

from __future__ import annotations


class ProaError(Exception):
    """Base of every error proa raises on purpose. `status` is a gRPC status name."""

    status = "INTERNAL"


class SettingsError(ProaError):
    status = "INVALID_ARGUMENT"


class SpecError(ProaError):
    status = "INVALID_ARGUMENT"


class EnvironmentLacks(ProaError):
    status = "FAILED_PRECONDITION"


class InvalidRequest(ProaError):
    status = "INVALID_ARGUMENT"


class UnknownModel(ProaError):
    status = "NOT_FOUND"


class NotSupported(ProaError):
    status = "UNIMPLEMENTED"


class Overloaded(ProaError):
    """A limit was reached. `retry_after_s`: seconds after which a retry may succeed."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthenticated(ProaError):
    status = "UNAUTHENTICATED"


class PermissionDenied(ProaError):
    status = "PERMISSION_DENIED"


class DeadlinePassed(ProaError):
    status = "DEADLINE_EXCEEDED"


class RequestCancelled(ProaError):
    status = "CANCELLED"


class Unavailable(ProaError):
    status = "UNAVAILABLE"


class ShardUnavailable(Unavailable):
    """`retry_after_s`: seconds after which a retry may succeed."""

    def __init__(self, message: str, *, retry_after_s: float = 0.2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DataLost(ProaError):
    """More shards were lost than the parity covers. `table`, and `ids` of the rows asked for."""

    status = "DATA_LOSS"

    def __init__(self, message: str, *, table: str = "", ids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.table, self.ids = table, ids


class StaleMap(ProaError):
    """`version`: of the map in force, -1 where it is not known."""

    status = "ABORTED"

    def __init__(self, message: str, *, version: int = -1) -> None:
        super().__init__(message)
        self.version = version


class PushIndeterminate(ProaError):
    """A push that was neither acknowledged nor refused. `step`: of the worker that pushed."""

    status = "UNKNOWN"

    def __init__(self, message: str, *, step: int = -1) -> None:
        super().__init__(message)
        self.step = step


class BadAnswer(ProaError):
    status = "INTERNAL"


class ProgramRefused(ProaError):
    status = "FAILED_PRECONDITION"


class CodingError(ProaError):
    status = "INTERNAL"


class WrongGroup(CodingError):
    status = "INVALID_ARGUMENT"


class TooManyErasures(CodingError):
    status = "DATA_LOSS"
