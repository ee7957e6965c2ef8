from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FaultKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_KIND_UNSPECIFIED: _ClassVar[FaultKind]
    DELAY: _ClassVar[FaultKind]
    PAUSE: _ClassVar[FaultKind]
    ERROR: _ClassVar[FaultKind]
    DROP: _ClassVar[FaultKind]
    BITFLIP: _ClassVar[FaultKind]
    STALE_DISK: _ClassVar[FaultKind]

class FaultSite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT: _ClassVar[FaultSite]
    WEIGHT: _ClassVar[FaultSite]
    ACTIVATION: _ClassVar[FaultSite]
    EMBEDDING: _ClassVar[FaultSite]
FAULT_KIND_UNSPECIFIED: FaultKind
DELAY: FaultKind
PAUSE: FaultKind
ERROR: FaultKind
DROP: FaultKind
BITFLIP: FaultKind
STALE_DISK: FaultKind
OUTPUT: FaultSite
WEIGHT: FaultSite
ACTIVATION: FaultSite
EMBEDDING: FaultSite

class Fault(_message.Message):
    __slots__ = ("id", "kind", "ttl_ms", "probability", "program", "delay_ms", "bits", "seed", "site")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: FaultKind
    ttl_ms: int
    probability: float
    program: str
    delay_ms: int
    bits: int
    seed: int
    site: FaultSite
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[FaultKind, str]] = ..., ttl_ms: _Optional[int] = ..., probability: _Optional[float] = ..., program: _Optional[str] = ..., delay_ms: _Optional[int] = ..., bits: _Optional[int] = ..., seed: _Optional[int] = ..., site: _Optional[_Union[FaultSite, str]] = ...) -> None: ...

class InjectRequest(_message.Message):
    __slots__ = ("fault",)
    FAULT_FIELD_NUMBER: _ClassVar[int]
    fault: Fault
    def __init__(self, fault: _Optional[_Union[Fault, _Mapping]] = ...) -> None: ...

class ClearRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FaultRequest(_message.Message):
    __slots__ = ("inject", "clear", "list")
    INJECT_FIELD_NUMBER: _ClassVar[int]
    CLEAR_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    inject: InjectRequest
    clear: ClearRequest
    list: ListRequest
    def __init__(self, inject: _Optional[_Union[InjectRequest, _Mapping]] = ..., clear: _Optional[_Union[ClearRequest, _Mapping]] = ..., list: _Optional[_Union[ListRequest, _Mapping]] = ...) -> None: ...

class FaultReply(_message.Message):
    __slots__ = ("active",)
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    active: _containers.RepeatedCompositeFieldContainer[Fault]
    def __init__(self, active: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("id", "action", "target", "ttl_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    action: str
    target: str
    ttl_ms: int
    def __init__(self, id: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
