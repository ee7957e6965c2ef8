"""wire: every dtype there and back, and everything a peer can get wrong."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from proa import wire
from proa.errors import BadAnswer, InvalidRequest

NUMERIC = [name for name in wire.DTYPES if name not in ("BOOL", "BYTES")]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TYPED = [name for name in wire.DTYPES if name not in ("FP16", "BF16")]


@st.composite
def arrays(draw, datatype):
    """An array of any shape and any bits of that datatype (NaN payloads included)."""
    shape = draw(SHAPES)
    dtype = wire.DTYPES[datatype]
    if datatype == "BYTES":
        return draw(hnp.arrays(object, shape, elements=st.binary(max_size=9), fill=st.nothing()))
    if datatype == "BOOL":
        return draw(hnp.arrays(np.bool_, shape))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    return np.frombuffer(raw, dtype).reshape(shape)


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype == object:
        assert found.tolist() == expected.tolist()
    else:
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("datatype", wire.DTYPES)
@given(data=st.data())
def test_there_and_back(datatype, data):
    array = data.draw(arrays(datatype))
    request = wire.write_request("m", {"x": array}, outputs=["y"])
    request = service_pb2.ModelInferRequest.FromString(request.SerializeToString())
    assert request.inputs[0].datatype == datatype
    same(wire.read_request(request)["x"], array)
    response = wire.write_response("m", "1", "", {"y": array}, {})
    same(wire.read_response(response)["y"], array)
    name, found = wire.from_tensor(wire.to_tensor("x", array))
    assert name == "x"
    same(found, array)


@pytest.mark.parametrize("datatype", TYPED)
@given(data=st.data())
def test_typed_contents_are_read(datatype, data):
    array = data.draw(arrays(datatype))
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    field = wire._TYPED_FIELDS[datatype]
    getattr(tensor.contents, field).extend(array.ravel().tolist())
    found = wire.read_request(request)["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(data=st.binary(max_size=40), count=st.integers(0, 5))
def test_bytes_tensors_are_read_or_refused(data, count):
    request = service_pb2.ModelInferRequest(raw_input_contents=[data])
    request.inputs.add(name="x", datatype="BYTES", shape=[count])
    try:
        found = wire.read_request(request)["x"]
    except InvalidRequest:
        return
    same(found, found)
    again = wire.write_request("m", {"x": found}, outputs=[])
    assert again.raw_input_contents[0] == data


@given(
    st.binary(max_size=64),
    st.sampled_from([*wire.DTYPES, "FP8", ""]),
    st.lists(st.integers(-2, 2**62), max_size=4),
)
def test_no_header_and_body_raises_anything_else(raw, datatype, shape):
    request = service_pb2.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    try:
        found = wire.read_request(request)["x"]
    except InvalidRequest:
        return
    assert found.shape == tuple(shape)


def make(datatype="FP32", shape=(2,), raw=b"\0" * 8, name="x"):
    request = service_pb2.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make(raw=b"\0" * 7), "input 'x': FP32 [2] takes 8 bytes, got 7"),
        (make(shape=(2**31, 2**31, 2**31)), "exceeds 2147483648 elements"),
        (make(shape=(0, 2**62), raw=b""), "exceeds 2147483648 elements"),
        (make(shape=(-1, 2)), "negative dimension"),
        (make(shape=(1,) * 33, raw=b"\0" * 4), "33 dimensions in input 'x'; the limit is 32"),
        (make(datatype="FP8"), "datatype 'FP8' is not one of BOOL"),
        (make(name=""), "a name has 1 to 256 bytes"),
        (make(name="n" * 257), "a name has 1 to 256 bytes"),
        (make(datatype="BOOL", raw=b"\0\2"), "a BOOL is a byte 0 or 1"),
        (make(datatype="BYTES", raw=struct.pack("<I", 2**32 - 1) + b"a"), "5 bytes are not the 2"),
        (make(datatype="BYTES", raw=struct.pack("<II", 0, 0) + b"a"), "9 bytes are not the 2"),
    ],
)
def test_what_a_peer_gets_wrong_is_named(request_, message):
    with pytest.raises(InvalidRequest) as caught:
        wire.read_request(request_)
    assert message in str(caught.value)


def test_names_are_unique():
    request = wire.write_request("m", {"x": np.zeros(1)}, outputs=[])
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    with pytest.raises(InvalidRequest, match="'x' is given twice"):
        wire.read_request(request)


def test_raw_contents_are_one_for_each_tensor():
    request = make()
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequest, match="2 raw contents for 1 inputs"):
        wire.read_request(request)


def test_raw_and_typed_exclude_each_other():
    request = make()
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    with pytest.raises(InvalidRequest, match="use one of the two"):
        wire.read_request(request)


def typed(datatype, field, values, shape):
    request = service_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (typed("FP32", "fp32_contents", [1.0], [2]), "takes 2 elements, got 1"),
        (typed("FP32", "fp64_contents", [1.0], [1]), "FP32 goes in fp32_contents"),
        (typed("INT8", "int_contents", [128], [1]), "INT8 is -128 to 127"),
        (typed("UINT16", "uint_contents", [65536], [1]), "UINT16 is 0 to 65535"),
        (typed("FP16", "fp32_contents", [1.0], [1]), "send it raw"),
        (typed("BF16", "fp32_contents", [], [1]), "send it raw"),
    ],
)
def test_typed_contents_are_checked(request_, message):
    with pytest.raises(InvalidRequest) as caught:
        wire.read_request(request_)
    assert message in str(caught.value)


def test_too_many_tensors():
    request = service_pb2.ModelInferRequest()
    for i in range(wire.TENSORS_MAX + 1):
        request.inputs.add(name=str(i), datatype="FP32", shape=[0])
    with pytest.raises(InvalidRequest, match="65 inputs; the limit is 64"):
        wire.read_request(request)


def test_a_worker_that_answers_nonsense_is_a_bad_answer():
    response = wire.write_response("m", "1", "", {"y": np.zeros(2, np.float32)}, {})
    response.outputs[0].shape[0] = 3
    with pytest.raises(BadAnswer, match=r"output 'y': FP32 \[3\] takes 12 bytes, got 8"):
        wire.read_response(response)


def test_reading_raw_contents_copies_nothing():
    found = wire.read_request(make())["x"]
    assert not found.flags.owndata
    assert not found.flags.writeable


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_and_strides_do_not_show(order):
    array = np.arange(6, dtype=f"{order}f4").reshape(2, 3).T
    found = wire.read_request(wire.write_request("m", {"x": array}, outputs=[]))["x"]
    np.testing.assert_array_equal(found, array)


def test_text_becomes_utf8():
    request = wire.write_request("m", {"x": np.array(["é", "b"])}, outputs=[])
    assert wire.read_request(request)["x"].tolist() == ["é".encode(), b"b"]


@pytest.mark.parametrize("array", [np.zeros(1, complex), np.array([1, None], dtype=object)])
def test_what_the_protocol_cannot_say_is_refused(array):
    with pytest.raises(InvalidRequest):
        wire.write_request("m", {"x": array}, outputs=[])


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        max_size=5,
    )
)
def test_parameters_there_and_back(parameters):
    response = wire.write_response("m", "1", "", {}, parameters)
    found = wire.get_parameters(response.parameters)
    assert found == parameters
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in parameters.items()}


def test_a_parameter_without_a_value_is_refused():
    request = service_pb2.ModelInferRequest()
    request.parameters["proa.exact"].SetInParent()
    with pytest.raises(InvalidRequest, match=r"'proa\.exact' has no value"):
        wire.get_parameters(request.parameters)


def test_a_request_says_program_outputs_and_parameters():
    request = wire.write_request(
        "digits",
        {"x": np.zeros(1)},
        outputs=["a", "b"],
        program="parity.0",
        request_id="7",
        parameters={"proa.exact": True, "timeout": 5},
    )
    assert (request.model_name, request.id) == ("digits", "7")
    assert [output.name for output in request.outputs] == ["a", "b"]
    assert wire.get_parameters(request.parameters) == {
        "proa.program": "parity.0",
        "proa.exact": True,
        "timeout": 5,
    }


def test_a_list_of_tensors_has_distinct_names_and_one_at_least():
    tensor = wire.to_tensor("x", np.zeros(1))
    with pytest.raises(InvalidRequest, match="member 1 has no tensors"):
        wire.from_tensors([], "member 1")
    with pytest.raises(InvalidRequest, match="member 1, tensor 'x' is given twice"):
        wire.from_tensors([tensor, tensor], "member 1")
