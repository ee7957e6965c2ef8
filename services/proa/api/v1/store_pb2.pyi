from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OptimiserSpec(_message.Message):
    __slots__ = ("kind", "parameters", "nesterov")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NESTEROV_FIELD_NUMBER: _ClassVar[int]
    kind: str
    parameters: _containers.ScalarMap[str, float]
    nesterov: bool
    def __init__(self, kind: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ..., nesterov: _Optional[bool] = ...) -> None: ...

class InitialiserSpec(_message.Message):
    __slots__ = ("kind", "seed", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    seed: int
    parameters: _containers.ScalarMap[str, float]
    def __init__(self, kind: _Optional[str] = ..., seed: _Optional[int] = ..., parameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TableSpec(_message.Message):
    __slots__ = ("name", "rows", "dim", "optimiser", "init")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    OPTIMISER_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    dim: int
    optimiser: OptimiserSpec
    init: InitialiserSpec
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., optimiser: _Optional[_Union[OptimiserSpec, _Mapping]] = ..., init: _Optional[_Union[InitialiserSpec, _Mapping]] = ...) -> None: ...

class CreateTableRequest(_message.Message):
    __slots__ = ("table",)
    TABLE_FIELD_NUMBER: _ClassVar[int]
    table: TableSpec
    def __init__(self, table: _Optional[_Union[TableSpec, _Mapping]] = ...) -> None: ...

class CreateTableResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetMapRequest(_message.Message):
    __slots__ = ("catalogue_version",)
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    catalogue_version: int
    def __init__(self, catalogue_version: _Optional[int] = ...) -> None: ...

class StoreMap(_message.Message):
    __slots__ = ("store", "map", "ttl_ms", "catalogue", "catalogue_version", "agents", "servers")
    STORE_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    store: str
    map: ClusterMapTold
    ttl_ms: int
    catalogue: str
    catalogue_version: int
    agents: _containers.RepeatedScalarFieldContainer[str]
    servers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, store: _Optional[str] = ..., map: _Optional[_Union[ClusterMapTold, _Mapping]] = ..., ttl_ms: _Optional[int] = ..., catalogue: _Optional[str] = ..., catalogue_version: _Optional[int] = ..., agents: _Optional[_Iterable[str]] = ..., servers: _Optional[_Iterable[str]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("table", "ids")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: bytes
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[bytes] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("weights",)
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: bytes
    def __init__(self, weights: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("worker", "step", "floor", "tables", "session", "members")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    worker: int
    step: int
    floor: int
    tables: _containers.RepeatedCompositeFieldContainer[TableGradients]
    session: int
    members: int
    def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ..., floor: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableGradients, _Mapping]]] = ..., session: _Optional[int] = ..., members: _Optional[int] = ...) -> None: ...

class TableGradients(_message.Message):
    __slots__ = ("table", "ids", "gradients")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: bytes
    gradients: bytes
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[bytes] = ..., gradients: _Optional[bytes] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FlushResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushBlocksRequest(_message.Message):
    __slots__ = ("push", "session", "members", "process")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    push: PeerMessage.Push
    session: int
    members: int
    process: int
    def __init__(self, push: _Optional[_Union[PeerMessage.Push, _Mapping]] = ..., session: _Optional[int] = ..., members: _Optional[int] = ..., process: _Optional[int] = ...) -> None: ...

class BeginSessionRequest(_message.Message):
    __slots__ = ("session", "worker", "members", "epoch", "process", "begin")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    session: int
    worker: int
    members: int
    epoch: int
    process: int
    begin: int
    def __init__(self, session: _Optional[int] = ..., worker: _Optional[int] = ..., members: _Optional[int] = ..., epoch: _Optional[int] = ..., process: _Optional[int] = ..., begin: _Optional[int] = ...) -> None: ...

class BeginSessionResponse(_message.Message):
    __slots__ = ("next",)
    NEXT_FIELD_NUMBER: _ClassVar[int]
    next: int
    def __init__(self, next: _Optional[int] = ...) -> None: ...

class PushBlocksResponse(_message.Message):
    __slots__ = ("refused",)
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    refused: PeerMessage.PushRefused
    def __init__(self, refused: _Optional[_Union[PeerMessage.PushRefused, _Mapping]] = ...) -> None: ...

class StoreFault(_message.Message):
    __slots__ = ("kind", "table", "ids", "version", "step", "retry_after_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    kind: str
    table: str
    ids: _containers.RepeatedScalarFieldContainer[int]
    version: int
    step: int
    retry_after_s: float
    def __init__(self, kind: _Optional[str] = ..., table: _Optional[str] = ..., ids: _Optional[_Iterable[int]] = ..., version: _Optional[int] = ..., step: _Optional[int] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class StoreStatusRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class StoreReport(_message.Message):
    __slots__ = ("unix_ms", "map_version", "k", "r", "shards", "tables", "redundancy")
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REDUNDANCY_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    map_version: int
    k: int
    r: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardReport]
    tables: _containers.RepeatedCompositeFieldContainer[TableReport]
    redundancy: int
    def __init__(self, unix_ms: _Optional[int] = ..., map_version: _Optional[int] = ..., k: _Optional[int] = ..., r: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardReport, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[TableReport, _Mapping]]] = ..., redundancy: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PaceRequest(_message.Message):
    __slots__ = ("rows_per_s_max", "lease_ms")
    ROWS_PER_S_MAX_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    rows_per_s_max: int
    lease_ms: int
    def __init__(self, rows_per_s_max: _Optional[int] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("lease_ms", "until")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    until: _containers.RepeatedCompositeFieldContainer[WorkerStep]
    def __init__(self, lease_ms: _Optional[int] = ..., until: _Optional[_Iterable[_Union[WorkerStep, _Mapping]]] = ...) -> None: ...

class WorkerStep(_message.Message):
    __slots__ = ("worker", "step")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    worker: int
    step: int
    def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class HoldResponse(_message.Message):
    __slots__ = ("taken", "under_way", "quiet_ms")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    QUIET_MS_FIELD_NUMBER: _ClassVar[int]
    taken: _containers.RepeatedCompositeFieldContainer[WorkerStep]
    under_way: int
    quiet_ms: int
    def __init__(self, taken: _Optional[_Iterable[_Union[WorkerStep, _Mapping]]] = ..., under_way: _Optional[int] = ..., quiet_ms: _Optional[int] = ...) -> None: ...

class ShardReport(_message.Message):
    __slots__ = ("shard", "domain", "state", "epoch", "rows_pending", "rows_lost", "parity_incomplete", "outbox", "pushes", "memory_bytes", "rows_decoded")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROWS_PENDING_FIELD_NUMBER: _ClassVar[int]
    ROWS_LOST_FIELD_NUMBER: _ClassVar[int]
    PARITY_INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_DECODED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    domain: str
    state: str
    epoch: int
    rows_pending: int
    rows_lost: int
    parity_incomplete: int
    outbox: int
    pushes: int
    memory_bytes: int
    rows_decoded: int
    def __init__(self, shard: _Optional[int] = ..., domain: _Optional[str] = ..., state: _Optional[str] = ..., epoch: _Optional[int] = ..., rows_pending: _Optional[int] = ..., rows_lost: _Optional[int] = ..., parity_incomplete: _Optional[int] = ..., outbox: _Optional[int] = ..., pushes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., rows_decoded: _Optional[int] = ...) -> None: ...

class TableReport(_message.Message):
    __slots__ = ("table", "stripes", "creating")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    CREATING_FIELD_NUMBER: _ClassVar[int]
    table: TableSpec
    stripes: int
    creating: bool
    def __init__(self, table: _Optional[_Union[TableSpec, _Mapping]] = ..., stripes: _Optional[int] = ..., creating: _Optional[bool] = ...) -> None: ...

class RecoverRequest(_message.Message):
    __slots__ = ("rows_per_s_max",)
    ROWS_PER_S_MAX_FIELD_NUMBER: _ClassVar[int]
    rows_per_s_max: int
    def __init__(self, rows_per_s_max: _Optional[int] = ...) -> None: ...

class RecoverProgress(_message.Message):
    __slots__ = ("rows_done", "rows_pending", "parity_pending", "rows_lost", "shards_away", "done")
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_PENDING_FIELD_NUMBER: _ClassVar[int]
    PARITY_PENDING_FIELD_NUMBER: _ClassVar[int]
    ROWS_LOST_FIELD_NUMBER: _ClassVar[int]
    SHARDS_AWAY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    rows_done: int
    rows_pending: int
    parity_pending: int
    rows_lost: int
    shards_away: int
    done: bool
    def __init__(self, rows_done: _Optional[int] = ..., rows_pending: _Optional[int] = ..., parity_pending: _Optional[int] = ..., rows_lost: _Optional[int] = ..., shards_away: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("rows_per_s_max",)
    ROWS_PER_S_MAX_FIELD_NUMBER: _ClassVar[int]
    rows_per_s_max: int
    def __init__(self, rows_per_s_max: _Optional[int] = ...) -> None: ...

class ScrubProgress(_message.Message):
    __slots__ = ("rows_read", "rows_bad", "rows_repaired", "stripes_bad", "done", "rows_compared", "findings", "shards_failed", "stripes_repaired", "stripes_unread")
    ROWS_READ_FIELD_NUMBER: _ClassVar[int]
    ROWS_BAD_FIELD_NUMBER: _ClassVar[int]
    ROWS_REPAIRED_FIELD_NUMBER: _ClassVar[int]
    STRIPES_BAD_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_COMPARED_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FAILED_FIELD_NUMBER: _ClassVar[int]
    STRIPES_REPAIRED_FIELD_NUMBER: _ClassVar[int]
    STRIPES_UNREAD_FIELD_NUMBER: _ClassVar[int]
    rows_read: int
    rows_bad: int
    rows_repaired: int
    stripes_bad: int
    done: bool
    rows_compared: int
    findings: _containers.RepeatedCompositeFieldContainer[ScrubFinding]
    shards_failed: _containers.RepeatedScalarFieldContainer[int]
    stripes_repaired: int
    stripes_unread: int
    def __init__(self, rows_read: _Optional[int] = ..., rows_bad: _Optional[int] = ..., rows_repaired: _Optional[int] = ..., stripes_bad: _Optional[int] = ..., done: _Optional[bool] = ..., rows_compared: _Optional[int] = ..., findings: _Optional[_Iterable[_Union[ScrubFinding, _Mapping]]] = ..., shards_failed: _Optional[_Iterable[int]] = ..., stripes_repaired: _Optional[int] = ..., stripes_unread: _Optional[int] = ...) -> None: ...

class ScrubFinding(_message.Message):
    __slots__ = ("kind", "shard", "table", "stripe", "position", "rows", "ids")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    shard: int
    table: str
    stripe: int
    position: int
    rows: _containers.RepeatedScalarFieldContainer[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[str] = ..., shard: _Optional[int] = ..., table: _Optional[str] = ..., stripe: _Optional[int] = ..., position: _Optional[int] = ..., rows: _Optional[_Iterable[int]] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("destination",)
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    destination: str
    def __init__(self, destination: _Optional[str] = ...) -> None: ...

class SnapshotProgress(_message.Message):
    __slots__ = ("rows_written", "bytes_written", "done")
    ROWS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    rows_written: int
    bytes_written: int
    done: bool
    def __init__(self, rows_written: _Optional[int] = ..., bytes_written: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("table", "begin", "end", "state")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    table: str
    begin: int
    end: int
    state: bool
    def __init__(self, table: _Optional[str] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., state: _Optional[bool] = ...) -> None: ...

class ExportChunk(_message.Message):
    __slots__ = ("first_id", "weights", "state")
    FIRST_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    first_id: int
    weights: bytes
    state: bytes
    def __init__(self, first_id: _Optional[int] = ..., weights: _Optional[bytes] = ..., state: _Optional[bytes] = ...) -> None: ...

class PeerFrame(_message.Message):
    __slots__ = ("sender", "messages")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    sender: int
    messages: _containers.RepeatedCompositeFieldContainer[PeerMessage]
    def __init__(self, sender: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[PeerMessage, _Mapping]]] = ...) -> None: ...

class BlockName(_message.Message):
    __slots__ = ("stripe", "position")
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    stripe: int
    position: int
    def __init__(self, stripe: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class BlockRows(_message.Message):
    __slots__ = ("rows", "data", "width")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    data: bytes
    width: int
    def __init__(self, rows: _Optional[bytes] = ..., data: _Optional[bytes] = ..., width: _Optional[int] = ...) -> None: ...

class SessionTable(_message.Message):
    __slots__ = ("workers",)
    class Worker(_message.Message):
        __slots__ = ("worker", "floor", "steps")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        FLOOR_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        worker: int
        floor: int
        steps: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, worker: _Optional[int] = ..., floor: _Optional[int] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[SessionTable.Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[SessionTable.Worker, _Mapping]]] = ...) -> None: ...

class AppliedVersion(_message.Message):
    __slots__ = ("epoch", "version", "joined", "sessions")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    joined: bool
    sessions: SessionTable
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ..., joined: _Optional[bool] = ..., sessions: _Optional[_Union[SessionTable, _Mapping]] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("start", "to", "change", "marks")
    class Mark(_message.Message):
        __slots__ = ("worker", "step", "floor")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        FLOOR_FIELD_NUMBER: _ClassVar[int]
        worker: int
        step: int
        floor: int
        def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ..., floor: _Optional[int] = ...) -> None: ...
    START_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    start: int
    to: int
    change: BlockRows
    marks: _containers.RepeatedCompositeFieldContainer[LogEntry.Mark]
    def __init__(self, start: _Optional[int] = ..., to: _Optional[int] = ..., change: _Optional[_Union[BlockRows, _Mapping]] = ..., marks: _Optional[_Iterable[_Union[LogEntry.Mark, _Mapping]]] = ...) -> None: ...

class ClusterMapTold(_message.Message):
    __slots__ = ("version", "shards", "stripes", "settled")
    class Shard(_message.Message):
        __slots__ = ("shard", "epoch", "up", "disk", "disk_since", "trust_since", "nonce")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        UP_FIELD_NUMBER: _ClassVar[int]
        DISK_FIELD_NUMBER: _ClassVar[int]
        DISK_SINCE_FIELD_NUMBER: _ClassVar[int]
        TRUST_SINCE_FIELD_NUMBER: _ClassVar[int]
        NONCE_FIELD_NUMBER: _ClassVar[int]
        shard: int
        epoch: int
        up: bool
        disk: str
        disk_since: int
        trust_since: int
        nonce: int
        def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., up: _Optional[bool] = ..., disk: _Optional[str] = ..., disk_since: _Optional[int] = ..., trust_since: _Optional[int] = ..., nonce: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    version: int
    shards: _containers.RepeatedCompositeFieldContainer[ClusterMapTold.Shard]
    stripes: int
    settled: int
    def __init__(self, version: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ClusterMapTold.Shard, _Mapping]]] = ..., stripes: _Optional[int] = ..., settled: _Optional[int] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("push", "push_done", "push_refused", "delta", "ack", "refused", "fence", "fenced", "adopt", "adopted", "join", "snapshot", "joined", "mismatch", "hello", "grant", "heartbeat", "map_asked", "map_told")
    class Part(_message.Message):
        __slots__ = ("block", "payload")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        PAYLOAD_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        payload: BlockRows
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., payload: _Optional[_Union[BlockRows, _Mapping]] = ...) -> None: ...
    class Push(_message.Message):
        __slots__ = ("worker", "step", "floor", "epoch", "parts")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        FLOOR_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        PARTS_FIELD_NUMBER: _ClassVar[int]
        worker: int
        step: int
        floor: int
        epoch: int
        parts: _containers.RepeatedCompositeFieldContainer[PeerMessage.Part]
        def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ..., floor: _Optional[int] = ..., epoch: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[PeerMessage.Part, _Mapping]]] = ...) -> None: ...
    class PushDone(_message.Message):
        __slots__ = ("worker", "step")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        worker: int
        step: int
        def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...
    class LostRow(_message.Message):
        __slots__ = ("block", "row")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        ROW_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        row: int
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., row: _Optional[int] = ...) -> None: ...
    class PushRefused(_message.Message):
        __slots__ = ("worker", "step", "why", "lost")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        WHY_FIELD_NUMBER: _ClassVar[int]
        LOST_FIELD_NUMBER: _ClassVar[int]
        worker: int
        step: int
        why: str
        lost: _containers.RepeatedCompositeFieldContainer[PeerMessage.LostRow]
        def __init__(self, worker: _Optional[int] = ..., step: _Optional[int] = ..., why: _Optional[str] = ..., lost: _Optional[_Iterable[_Union[PeerMessage.LostRow, _Mapping]]] = ...) -> None: ...
    class Delta(_message.Message):
        __slots__ = ("block", "position", "term", "epoch", "entry", "watermark")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        ENTRY_FIELD_NUMBER: _ClassVar[int]
        WATERMARK_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        epoch: int
        entry: LogEntry
        watermark: int
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., epoch: _Optional[int] = ..., entry: _Optional[_Union[LogEntry, _Mapping]] = ..., watermark: _Optional[int] = ...) -> None: ...
    class Ack(_message.Message):
        __slots__ = ("block", "position", "term", "epoch", "version", "gap")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        GAP_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        epoch: int
        version: int
        gap: bool
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., gap: _Optional[bool] = ...) -> None: ...
    class Refused(_message.Message):
        __slots__ = ("source", "epoch")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        source: int
        epoch: int
        def __init__(self, source: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...
    class Fence(_message.Message):
        __slots__ = ("source", "epoch", "part")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        PART_FIELD_NUMBER: _ClassVar[int]
        source: int
        epoch: int
        part: int
        def __init__(self, source: _Optional[int] = ..., epoch: _Optional[int] = ..., part: _Optional[int] = ...) -> None: ...
    class Held(_message.Message):
        __slots__ = ("block", "position", "term", "applied")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        APPLIED_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        applied: AppliedVersion
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., applied: _Optional[_Union[AppliedVersion, _Mapping]] = ...) -> None: ...
    class Fenced(_message.Message):
        __slots__ = ("shard", "source", "epoch", "stamp", "held", "part", "more")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        STAMP_FIELD_NUMBER: _ClassVar[int]
        HELD_FIELD_NUMBER: _ClassVar[int]
        PART_FIELD_NUMBER: _ClassVar[int]
        MORE_FIELD_NUMBER: _ClassVar[int]
        shard: int
        source: int
        epoch: int
        stamp: int
        held: _containers.RepeatedCompositeFieldContainer[PeerMessage.Held]
        part: int
        more: bool
        def __init__(self, shard: _Optional[int] = ..., source: _Optional[int] = ..., epoch: _Optional[int] = ..., stamp: _Optional[int] = ..., held: _Optional[_Iterable[_Union[PeerMessage.Held, _Mapping]]] = ..., part: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...
    class Target(_message.Message):
        __slots__ = ("block", "position", "term", "version")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        version: int
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
    class Adopt(_message.Message):
        __slots__ = ("source", "epoch", "versions", "part")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        VERSIONS_FIELD_NUMBER: _ClassVar[int]
        PART_FIELD_NUMBER: _ClassVar[int]
        source: int
        epoch: int
        versions: _containers.RepeatedCompositeFieldContainer[PeerMessage.Target]
        part: int
        def __init__(self, source: _Optional[int] = ..., epoch: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[PeerMessage.Target, _Mapping]]] = ..., part: _Optional[int] = ...) -> None: ...
    class Adopted(_message.Message):
        __slots__ = ("shard", "source", "epoch", "held", "part")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        HELD_FIELD_NUMBER: _ClassVar[int]
        PART_FIELD_NUMBER: _ClassVar[int]
        shard: int
        source: int
        epoch: int
        held: _containers.RepeatedCompositeFieldContainer[PeerMessage.Held]
        part: int
        def __init__(self, shard: _Optional[int] = ..., source: _Optional[int] = ..., epoch: _Optional[int] = ..., held: _Optional[_Iterable[_Union[PeerMessage.Held, _Mapping]]] = ..., part: _Optional[int] = ...) -> None: ...
    class Have(_message.Message):
        __slots__ = ("epoch", "version")
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        epoch: int
        version: int
        def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
    class Join(_message.Message):
        __slots__ = ("block", "position", "term", "have")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        HAVE_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        have: PeerMessage.Have
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., have: _Optional[_Union[PeerMessage.Have, _Mapping]] = ...) -> None: ...
    class BlockSnapshot(_message.Message):
        __slots__ = ("block", "position", "term", "epoch", "version", "content", "sessions")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        CONTENT_FIELD_NUMBER: _ClassVar[int]
        SESSIONS_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        epoch: int
        version: int
        content: BlockRows
        sessions: SessionTable
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., content: _Optional[_Union[BlockRows, _Mapping]] = ..., sessions: _Optional[_Union[SessionTable, _Mapping]] = ...) -> None: ...
    class Joined(_message.Message):
        __slots__ = ("block", "position", "term", "epoch", "version")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        epoch: int
        version: int
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
    class Mismatch(_message.Message):
        __slots__ = ("block", "position", "term")
        BLOCK_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        block: BlockName
        position: int
        term: int
        def __init__(self, block: _Optional[_Union[BlockName, _Mapping]] = ..., position: _Optional[int] = ..., term: _Optional[int] = ...) -> None: ...
    class Hello(_message.Message):
        __slots__ = ("shard", "nonce", "disk", "stamp")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        NONCE_FIELD_NUMBER: _ClassVar[int]
        DISK_FIELD_NUMBER: _ClassVar[int]
        STAMP_FIELD_NUMBER: _ClassVar[int]
        shard: int
        nonce: int
        disk: str
        stamp: int
        def __init__(self, shard: _Optional[int] = ..., nonce: _Optional[int] = ..., disk: _Optional[str] = ..., stamp: _Optional[int] = ...) -> None: ...
    class Grant(_message.Message):
        __slots__ = ("shard", "nonce", "epoch", "first", "fresh", "trusted", "wait_s", "map")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        NONCE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        FIRST_FIELD_NUMBER: _ClassVar[int]
        FRESH_FIELD_NUMBER: _ClassVar[int]
        TRUSTED_FIELD_NUMBER: _ClassVar[int]
        WAIT_S_FIELD_NUMBER: _ClassVar[int]
        MAP_FIELD_NUMBER: _ClassVar[int]
        shard: int
        nonce: int
        epoch: int
        first: bool
        fresh: bool
        trusted: bool
        wait_s: float
        map: ClusterMapTold
        def __init__(self, shard: _Optional[int] = ..., nonce: _Optional[int] = ..., epoch: _Optional[int] = ..., first: _Optional[bool] = ..., fresh: _Optional[bool] = ..., trusted: _Optional[bool] = ..., wait_s: _Optional[float] = ..., map: _Optional[_Union[ClusterMapTold, _Mapping]] = ...) -> None: ...
    class Heartbeat(_message.Message):
        __slots__ = ("shard", "epoch", "map_version", "ready")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
        READY_FIELD_NUMBER: _ClassVar[int]
        shard: int
        epoch: int
        map_version: int
        ready: int
        def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., map_version: _Optional[int] = ..., ready: _Optional[int] = ...) -> None: ...
    class MapAsked(_message.Message):
        __slots__ = ("asked_s",)
        ASKED_S_FIELD_NUMBER: _ClassVar[int]
        asked_s: float
        def __init__(self, asked_s: _Optional[float] = ...) -> None: ...
    class MapTold(_message.Message):
        __slots__ = ("map", "asked_s")
        MAP_FIELD_NUMBER: _ClassVar[int]
        ASKED_S_FIELD_NUMBER: _ClassVar[int]
        map: ClusterMapTold
        asked_s: float
        def __init__(self, map: _Optional[_Union[ClusterMapTold, _Mapping]] = ..., asked_s: _Optional[float] = ...) -> None: ...
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PUSH_DONE_FIELD_NUMBER: _ClassVar[int]
    PUSH_REFUSED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    MISMATCH_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    MAP_ASKED_FIELD_NUMBER: _ClassVar[int]
    MAP_TOLD_FIELD_NUMBER: _ClassVar[int]
    push: PeerMessage.Push
    push_done: PeerMessage.PushDone
    push_refused: PeerMessage.PushRefused
    delta: PeerMessage.Delta
    ack: PeerMessage.Ack
    refused: PeerMessage.Refused
    fence: PeerMessage.Fence
    fenced: PeerMessage.Fenced
    adopt: PeerMessage.Adopt
    adopted: PeerMessage.Adopted
    join: PeerMessage.Join
    snapshot: PeerMessage.BlockSnapshot
    joined: PeerMessage.Joined
    mismatch: PeerMessage.Mismatch
    hello: PeerMessage.Hello
    grant: PeerMessage.Grant
    heartbeat: PeerMessage.Heartbeat
    map_asked: PeerMessage.MapAsked
    map_told: PeerMessage.MapTold
    def __init__(self, push: _Optional[_Union[PeerMessage.Push, _Mapping]] = ..., push_done: _Optional[_Union[PeerMessage.PushDone, _Mapping]] = ..., push_refused: _Optional[_Union[PeerMessage.PushRefused, _Mapping]] = ..., delta: _Optional[_Union[PeerMessage.Delta, _Mapping]] = ..., ack: _Optional[_Union[PeerMessage.Ack, _Mapping]] = ..., refused: _Optional[_Union[PeerMessage.Refused, _Mapping]] = ..., fence: _Optional[_Union[PeerMessage.Fence, _Mapping]] = ..., fenced: _Optional[_Union[PeerMessage.Fenced, _Mapping]] = ..., adopt: _Optional[_Union[PeerMessage.Adopt, _Mapping]] = ..., adopted: _Optional[_Union[PeerMessage.Adopted, _Mapping]] = ..., join: _Optional[_Union[PeerMessage.Join, _Mapping]] = ..., snapshot: _Optional[_Union[PeerMessage.BlockSnapshot, _Mapping]] = ..., joined: _Optional[_Union[PeerMessage.Joined, _Mapping]] = ..., mismatch: _Optional[_Union[PeerMessage.Mismatch, _Mapping]] = ..., hello: _Optional[_Union[PeerMessage.Hello, _Mapping]] = ..., grant: _Optional[_Union[PeerMessage.Grant, _Mapping]] = ..., heartbeat: _Optional[_Union[PeerMessage.Heartbeat, _Mapping]] = ..., map_asked: _Optional[_Union[PeerMessage.MapAsked, _Mapping]] = ..., map_told: _Optional[_Union[PeerMessage.MapTold, _Mapping]] = ...) -> None: ...
