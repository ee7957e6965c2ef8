from proa.api.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Query(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class InferParityRequest(_message.Message):
    __slots__ = ("model", "package", "group", "code", "row", "members", "outputs", "worker")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    model: str
    package: str
    group: int
    code: _tensor_pb2.Code
    row: int
    members: _containers.RepeatedCompositeFieldContainer[Query]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    worker: str
    def __init__(self, model: _Optional[str] = ..., package: _Optional[str] = ..., group: _Optional[int] = ..., code: _Optional[_Union[_tensor_pb2.Code, _Mapping]] = ..., row: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., worker: _Optional[str] = ...) -> None: ...

class InferParityResponse(_message.Message):
    __slots__ = ("outputs", "encode_seconds", "infer_seconds")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INFER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    encode_seconds: float
    infer_seconds: float
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., encode_seconds: _Optional[float] = ..., infer_seconds: _Optional[float] = ...) -> None: ...
