from proa.api.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prediction(_message.Message):
    __slots__ = ("position", "outputs")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    position: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, position: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "package", "group", "code", "available", "parity", "missing")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    model: str
    package: str
    group: int
    code: _tensor_pb2.Code
    available: _containers.RepeatedCompositeFieldContainer[Prediction]
    parity: _containers.RepeatedCompositeFieldContainer[Prediction]
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., package: _Optional[str] = ..., group: _Optional[int] = ..., code: _Optional[_Union[_tensor_pb2.Code, _Mapping]] = ..., available: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., parity: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("reconstructed",)
    RECONSTRUCTED_FIELD_NUMBER: _ClassVar[int]
    reconstructed: _containers.RepeatedCompositeFieldContainer[Prediction]
    def __init__(self, reconstructed: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ...) -> None: ...
