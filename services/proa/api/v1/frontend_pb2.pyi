from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class StatusReport(_message.Message):
    __slots__ = ("unix_ms", "models", "faults")
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    faults: _containers.RepeatedCompositeFieldContainer[FaultWindow]
    def __init__(self, unix_ms: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., faults: _Optional[_Iterable[_Union[FaultWindow, _Mapping]]] = ...) -> None: ...

class FaultWindow(_message.Message):
    __slots__ = ("id", "action", "target", "begin_unix_ms", "end_unix_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BEGIN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    END_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    action: str
    target: str
    begin_unix_ms: int
    end_unix_ms: int
    def __init__(self, id: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., begin_unix_ms: _Optional[int] = ..., end_unix_ms: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "package", "mode", "policy", "policy_in_force", "why", "queue_depth", "workers", "answers", "failed", "sent", "redundant_sent", "groups", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "agreement", "agreement_samples", "protection")
    class AnswersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class GroupsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    REDUNDANT_SENT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    P999_MS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROTECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    package: str
    mode: str
    policy: str
    policy_in_force: str
    why: str
    queue_depth: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    answers: _containers.ScalarMap[str, int]
    failed: int
    sent: int
    redundant_sent: int
    groups: _containers.ScalarMap[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    agreement: float
    agreement_samples: int
    protection: str
    def __init__(self, name: _Optional[str] = ..., package: _Optional[str] = ..., mode: _Optional[str] = ..., policy: _Optional[str] = ..., policy_in_force: _Optional[str] = ..., why: _Optional[str] = ..., queue_depth: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., answers: _Optional[_Mapping[str, int]] = ..., failed: _Optional[int] = ..., sent: _Optional[int] = ..., redundant_sent: _Optional[int] = ..., groups: _Optional[_Mapping[str, int]] = ..., p50_ms: _Optional[float] = ..., p95_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., p999_ms: _Optional[float] = ..., agreement: _Optional[float] = ..., agreement_samples: _Optional[int] = ..., protection: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("name", "domain", "roles", "state", "inflight", "latency_ms", "errors", "answered", "checks", "faults")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    domain: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    state: str
    inflight: int
    latency_ms: float
    errors: int
    answered: int
    checks: int
    faults: int
    def __init__(self, name: _Optional[str] = ..., domain: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., inflight: _Optional[int] = ..., latency_ms: _Optional[float] = ..., errors: _Optional[int] = ..., answered: _Optional[int] = ..., checks: _Optional[int] = ..., faults: _Optional[int] = ...) -> None: ...
