"""Checks of requests and answers that the services' tests cannot reach with one fake model."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from proa import wire
from proa.errors import BadAnswer, InvalidRequest
from proa.frontend.queries import as_declared, check_answer, check_request
from proa.spec import CodedModel, ModelSpec, RedundancySpec, TensorSpec

FP32 = CodedModel(
    "m",
    ModelSpec(
        inputs=(TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))),
        outputs=(TensorSpec("y", "FP32", (3,)),),
    ),
)


def spec(dtype: str, shape: tuple[int, ...] = (2,)) -> CodedModel:
    """A model with one input `a` and one output `y`, both of this datatype and shape."""
    model = ModelSpec(
        inputs=(TensorSpec("a", dtype, shape),), outputs=(TensorSpec("y", dtype, shape),)
    )
    return CodedModel("m", model)


def ask(found: CodedModel, **tensors: Any) -> Any:
    return check_request(wire.write_request("m", tensors, outputs=()), found)


def a(batch: int) -> Any:
    return np.ones((batch, 2), np.float32)


def b(batch: int) -> Any:
    return np.ones((batch, 1), np.int32)


def test_a_good_request_with_two_inputs() -> None:
    query = ask(FP32, a=a(3), b=b(3))
    assert (query.batch, query.size, query.wanted) == (3, 36, ("y",))
    assert (query.exact, query.policy, query.timeout_s) == (False, None, None)


def drill(parameters: dict[str, wire.Parameter], **redundancy: Any) -> Any:
    found = dataclasses.replace(
        spec("FP32"), redundancy=RedundancySpec(**{"coder": "mean", **redundancy})
    )
    tensors = {"a": a(1)}
    request = wire.write_request("m", tensors, outputs=(), parameters=parameters)
    return check_request(request, found)


def test_a_drill_may_be_asked_for() -> None:
    assert drill({"proa.reconstruct": True}).reconstruct
    assert not drill({"proa.reconstruct": False}).reconstruct
    assert not drill({}).reconstruct


@pytest.mark.parametrize(
    ("parameters", "redundancy", "message"),
    [
        ({"proa.exact": True}, {}, "'proa.reconstruct' and 'proa.exact' exclude each other"),
        ({}, {"mode": "observe"}, "has mode 'observe', which answers nothing from the code"),
        ({}, {"coder": "sum"}, "model 'm' has no parity to decode"),
        ({"proa.reconstruct": 1}, {}, "'proa.reconstruct' must be a bool, not 1"),
    ],
)
def test_a_drill_that_can_never_be_had(
    parameters: dict[str, wire.Parameter], redundancy: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        drill({"proa.reconstruct": True, **parameters}, **redundancy)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (0, 3), (3, 0)])
def test_all_inputs_have_one_batch(first: int, second: int) -> None:
    with pytest.raises(InvalidRequest, match=f"'b' has batch {second}; the others have {first}"):
        ask(FP32, a=a(first), b=b(second))


def test_only_like_queries_have_like_keys() -> None:
    keys = {
        ask(FP32, a=a(1), b=b(1)).key("m"),
        ask(FP32, b=b(1), a=a(1) * 2).key("m"),
        ask(FP32, a=a(2), b=b(2)).key("m"),
        ask(FP32, a=a(1), b=b(1)).key("n"),
        ask(spec("FP32"), a=a(1)).key("m"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("dtype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_in_every_float_type(dtype: str, value: float) -> None:
    array = np.array([[1.0, value]]).astype(wire.DTYPES[dtype])
    with pytest.raises(InvalidRequest, match="'a' holds NaN or Inf"):
        ask(spec(dtype), a=array)
    response = wire.write_response("m", "1", "", {"y": array}, {})
    with pytest.raises(BadAnswer, match="worker w: output 'y' holds NaN or Inf"):
        check_answer(response, spec(dtype), 1, "w")


def test_a_variable_dimension_takes_any_length_and_keeps_its_nan() -> None:
    found = spec("FP32", (-1,))
    assert ask(found, a=np.ones((1, 7), np.float32)).batch == 1
    response = wire.write_response("m", "1", "", {"y": np.full((1, 4), np.nan, np.float32)}, {})
    assert check_answer(response, found, 1, "w")["y"].shape == (1, 4)


def test_text_is_served() -> None:
    query = ask(spec("BYTES", (1,)), a=np.array([[b"hello"]], dtype=object))
    assert query.inputs["a"].tolist() == [[b"hello"]]


def test_an_answer_without_an_output_names_worker_and_output() -> None:
    response = wire.write_response("m", "1", "", {"z": a(1)}, {})
    with pytest.raises(BadAnswer, match="worker w: output 'y' is missing"):
        check_answer(response, spec("FP32"), 1, "w")


@pytest.mark.parametrize("dtype", ["INT8", "UINT8", "INT16", "INT32", "UINT32", "INT64", "UINT64"])
def test_a_reconstructed_integer_is_rounded_and_stays_in_its_limits(dtype: str) -> None:
    limits = np.iinfo(wire.DTYPES[dtype])
    values = np.array([[-1e30, 2.6, 7.4, 1e30]], np.float32)
    found = as_declared({"y": values}, spec(dtype, (4,)), 1)["y"]
    assert found.dtype == wire.DTYPES[dtype]
    low, three, seven, high = found[0].tolist()
    assert (low, three, seven) == (limits.min, 3, 7)
    # Within one float of the limit: the largest 64-bit integers have no float of their own.
    assert limits.max - 2048 <= high <= limits.max
    assert limits.bits == 64 or high == limits.max


def test_a_reconstruction_keeps_the_declared_float_type() -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    found = as_declared({"y": values}, spec("BF16"), 1)["y"]
    assert found.dtype == np.dtype(ml_dtypes.bfloat16)
    assert found.astype(np.float32).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "'y' is missing or of another shape"),
        ({"y": np.zeros((1, 3), np.float32)}, "of another shape"),
        ({"y": np.zeros((2, 2), np.float32)}, "of another shape"),
        ({"y": np.array([[1.0, np.nan]], np.float32)}, "'y' holds NaN or Inf"),
    ],
)
def test_a_reconstruction_that_does_not_fit_is_no_answer(outputs: Any, words: str) -> None:
    with pytest.raises(BadAnswer, match=words):
        as_declared(outputs, spec("FP32"), 1)


def test_outputs_come_in_the_order_that_the_client_wants() -> None:
    two = dataclasses.replace(
        FP32.model, outputs=(TensorSpec("y", "FP32", (1,)), TensorSpec("z", "FP32", (1,)))
    )
    message = wire.write_request("m", {"a": a(1), "b": b(1)}, outputs=["z", "y"])
    assert check_request(message, dataclasses.replace(FP32, model=two)).wanted == ("z", "y")
