"""Protobuf messages <-> numpy arrays: the only place that knows tensor bytes.

Everything that a peer can get wrong (names, datatypes, shapes, byte lengths) raises InvalidRequest
with the tensor's name, what was expected and what came; `read_response` raises BadAnswer instead.
Arrays read from raw contents are read-only views on the message's bytes: no copy is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from proa.api.v1 import tensor_pb2
from proa.errors import BadAnswer, InvalidRequest

Array = NDArray[Any]
Parameter = bool | int | str | float

TENSORS_MAX = 64
DIMENSIONS_MAX = 32
ELEMENTS_MAX = 1 << 31
NAME_BYTES_MAX = 256
PARAMETERS_MAX = 64

# Open Inference Protocol datatype -> numpy dtype. BYTES is an array of Python `bytes` objects.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_LENGTH = struct.Struct("<I")
_INT64 = range(-(2**63), 2**63)


class Header(NamedTuple):
    """What a message says about a tensor before its contents are looked at."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: int


def datatype_of(array: Array) -> str:
    """The Open Inference Protocol name of an array's dtype, as `FP32`. Errors: InvalidRequest."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get(array.dtype) or _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise InvalidRequest(f"dtype {array.dtype} has no datatype in the protocol")
    return name


def read_tensors(
    tensors: Sequence[Any], raw_contents: Sequence[bytes], *, what: str = "input"
) -> dict[str, Array]:
    """The arrays of a ModelInferRequest's inputs or of a ModelInferResponse's outputs, by name.

    tensors: `inputs` or `outputs` of the message; raw_contents: its `raw_..._contents`, either
    empty (all tensors carry typed contents) or one for each tensor, in order.
    Errors: InvalidRequest.
    """
    _at_most(len(tensors), TENSORS_MAX, f"{what}s")
    if raw_contents and len(raw_contents) != len(tensors):
        raise InvalidRequest(f"{len(raw_contents)} raw contents for {len(tensors)} {what}s")
    found: dict[str, Array] = {}
    for i, tensor in enumerate(tensors):
        header = _header(tensor, what, found)
        typed = tensor.HasField("contents")
        if raw_contents and typed:
            raise InvalidRequest(
                f"{what} {header.name!r} has typed contents beside raw ones: use one of the two"
            )
        if raw_contents:
            found[header.name] = _from_raw(header, raw_contents[i], what)
        else:
            found[header.name] = _from_typed(header, tensor.contents if typed else None, what)
    return found


def read_request(request: Any) -> dict[str, Array]:
    """The inputs of a ModelInferRequest, by name. Errors: InvalidRequest."""
    return read_tensors(request.inputs, request.raw_input_contents)


def read_response(response: Any) -> dict[str, Array]:
    """The outputs of a ModelInferResponse, by name. Errors: BadAnswer."""
    try:
        return read_tensors(response.outputs, response.raw_output_contents, what="output")
    except InvalidRequest as exc:
        raise BadAnswer(str(exc)) from exc


def write_request(
    model: str,
    tensors: Mapping[str, Array],
    *,
    outputs: Sequence[str],
    program: str | None = None,
    request_id: str = "",
    version: str = "",
    parameters: Mapping[str, Parameter] | None = None,
) -> Any:
    """A service_pb2.ModelInferRequest with raw contents.

    outputs: names to ask for; none means all. program: value of the parameter `proa.program`.
    Errors: InvalidRequest (a dtype that the protocol lacks, elements of BYTES).
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        request.raw_input_contents.append(_to_raw(name, array))
    for name in outputs:
        request.outputs.add(name=name)
    if program is not None:
        request.parameters["proa.program"].string_param = program
    if parameters:
        set_parameters(request.parameters, parameters)
    return request


def write_response(
    model: str,
    version: str,
    request_id: str,
    tensors: Mapping[str, Array],
    parameters: Mapping[str, Parameter],
) -> Any:
    """A service_pb2.ModelInferResponse with raw contents. Errors: InvalidRequest."""
    response = service_pb2.ModelInferResponse(
        model_name=model, model_version=version, id=request_id
    )
    for name, array in tensors.items():
        response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        response.raw_output_contents.append(_to_raw(name, array))
    set_parameters(response.parameters, parameters)
    return response


def get_parameters(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """A map of InferParameter as plain values. Errors: InvalidRequest (too many, one is empty)."""
    _at_most(len(parameters), PARAMETERS_MAX, "parameters")
    found: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {name!r} has no value")
        found[name] = getattr(parameter, choice)
    return found


def set_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Fill a message's map of InferParameter."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            kind = "int64_param" if value in _INT64 else "uint64_param"
            setattr(target[name], kind, value)
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def to_tensor(name: str, array: Array) -> tensor_pb2.Tensor:
    """An array as proa.api.v1.Tensor. Errors: InvalidRequest."""
    return tensor_pb2.Tensor(
        name=name, datatype=datatype_of(array), shape=array.shape, contents=_to_raw(name, array)
    )


def from_tensor(tensor: tensor_pb2.Tensor) -> tuple[str, Array]:
    """Name and array of a proa.api.v1.Tensor. Errors: InvalidRequest."""
    header = _header(tensor, "tensor", {})
    return header.name, _from_raw(header, tensor.contents, "tensor")


def from_tensors(tensors: Sequence[tensor_pb2.Tensor], what: str) -> dict[str, Array]:
    """Arrays of a list of proa.api.v1.Tensor, by name; at least one. Errors: InvalidRequest."""
    _at_most(len(tensors), TENSORS_MAX, f"tensors in {what}")
    if not tensors:
        raise InvalidRequest(f"{what} has no tensors")
    found: dict[str, Array] = {}
    for tensor in tensors:
        header = _header(tensor, f"{what}, tensor", found)
        found[header.name] = _from_raw(header, tensor.contents, f"{what}, tensor")
    return found


def _header(tensor: Any, what: str, seen: Mapping[str, object]) -> Header:
    """Name, datatype and shape, checked; not one byte of contents is touched before."""
    name: str = tensor.name
    if not name or len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(f"{what}: a name has 1 to {NAME_BYTES_MAX} bytes, not {len(name)}")
    if name in seen:
        raise InvalidRequest(f"{what} {name!r} is given twice")
    if tensor.datatype not in DTYPES:
        raise InvalidRequest(
            f"{what} {name!r}: datatype {tensor.datatype[:32]!r} is not one of {', '.join(DTYPES)}"
        )
    shape = tuple(tensor.shape)
    _at_most(len(shape), DIMENSIONS_MAX, f"dimensions in {what} {name!r}")
    if any(n < 0 for n in shape):
        raise InvalidRequest(f"{what} {name!r}: shape {list(shape)} has a negative dimension")
    # A zero must not hide the others: numpy refuses shapes whose other dimensions overflow.
    if math.prod(n or 1 for n in shape) > ELEMENTS_MAX:
        raise InvalidRequest(
            f"{what} {name!r}: shape {list(shape)} exceeds {ELEMENTS_MAX} elements"
        )
    return Header(name, tensor.datatype, shape, math.prod(shape))


def _from_raw(header: Header, raw: bytes, what: str) -> Array:
    if header.datatype == "BYTES":
        return _bytes_array(header, _split(header, raw, what))
    dtype = DTYPES[header.datatype]
    expected = header.elements * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"{what} {header.name!r}: {header.datatype} {list(header.shape)} takes"
            f" {expected} bytes, got {len(raw)}"
        )
    # numpy takes any byte for a bool and computes nonsense with a 2.
    if header.datatype == "BOOL" and raw.translate(None, b"\x00\x01"):
        raise InvalidRequest(f"{what} {header.name!r}: a BOOL is a byte 0 or 1")
    return np.frombuffer(raw, dtype).reshape(header.shape)


def _from_typed(header: Header, contents: Any, what: str) -> Array:
    name = f"{what} {header.name!r}"
    field = _TYPED_FIELDS.get(header.datatype)
    if field is None:
        raise InvalidRequest(f"{name}: {header.datatype} has no typed contents: send it raw")
    used = [] if contents is None else [f.name for f, _ in contents.ListFields()]
    if any(other != field for other in used):
        raise InvalidRequest(f"{name}: {header.datatype} goes in {field}, not in {', '.join(used)}")
    values = getattr(contents, field) if used else ()
    if len(values) != header.elements:
        raise InvalidRequest(
            f"{name}: shape {list(header.shape)} takes {header.elements} elements,"
            f" got {len(values)}"
        )
    if header.datatype == "BYTES":
        return _bytes_array(header, values)
    return _narrowed(np.array(values, _wide(header.datatype)), header, name)


def _wide(datatype: str) -> np.dtype[Any]:
    """The dtype in which typed contents hold a datatype."""
    if datatype.startswith("INT"):
        return np.dtype(np.int64)
    return np.dtype(np.uint64) if datatype.startswith("UINT") else DTYPES[datatype]


def _narrowed(values: Array, header: Header, name: str) -> Array:
    dtype = DTYPES[header.datatype]
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise InvalidRequest(f"{name}: {header.datatype} is {limits.min} to {limits.max}")
    return values.astype(dtype, copy=False).reshape(header.shape)


def _split(header: Header, raw: bytes, what: str) -> list[bytes]:
    """The elements of raw BYTES: each its length as a little-endian uint32, then its bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < header.elements:
        start = at + _LENGTH.size
        if start > len(raw):
            break
        at = start + _LENGTH.unpack_from(raw, at)[0]
        found.append(raw[start:at])
    if at != len(raw) or len(found) != header.elements:
        raise InvalidRequest(
            f"{what} {header.name!r}: {len(raw)} bytes are not the {header.elements} elements of"
            f" BYTES {list(header.shape)}, each with its length before it"
        )
    return found


def _bytes_array(header: Header, elements: Iterable[bytes]) -> Array:
    array = np.empty(header.elements, dtype=object)
    for i, element in enumerate(elements):
        array[i] = element
    return array.reshape(header.shape)


def _to_raw(name: str, array: Array) -> bytes:
    if array.dtype.kind in "OSU":
        return b"".join(_prefixed(name, element) for element in array.ravel().tolist())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def _prefixed(name: str, element: object) -> bytes:
    data = element.encode() if isinstance(element, str) else element
    if not isinstance(data, bytes):
        raise InvalidRequest(
            f"tensor {name!r}: elements of BYTES are bytes or str, not {element!r}"
        )
    return _LENGTH.pack(len(data)) + data


def _at_most(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise InvalidRequest(f"{count} {what}; the limit is {limit}")
