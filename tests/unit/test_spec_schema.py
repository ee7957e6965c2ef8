"""The JSON Schema of a spec file and the loader agree, except where the schema says it does not."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, ValidationError

from proa.errors import SpecError
from proa.spec import RedundancySpec, SloSpec, load
from proa.spec.schema import DRAFT, coded_model_schema, spec_schema

SHA = "0123456789abcdef" * 4
SCHEMA = coded_model_schema()
VALIDATOR = Draft7Validator(SCHEMA)
WHOLE: dict[str, Any] = {
    "apiVersion": "proa.dev/v1alpha1",
    "kind": "CodedModel",
    "metadata": {"name": "digits"},
    "spec": {
        "model": {
            "program": "digits.pt2",
            "sha256": SHA,
            "maxBatch": 8,
            "inputs": [{"name": "image", "dtype": "FP32", "shape": [1, 8, 8]}],
            "outputs": [{"name": "logits", "dtype": "FP32", "shape": [10]}],
        },
        "redundancy": {
            "mode": "enforce", "policy": "parity", "k": 2, "r": 1, "coder": "sum",
            "parity": {"2": ["p.pt2"], "3": [{"program": "a.pt2", "sha256": SHA}, "b.pt2"]},
            "pool": "shared", "placement": "auto", "patience": "tail", "groupMsMax": 5,
            "idleReserve": 1, "inflightMax": 1, "hedge": {"delayMs": "auto", "budgetPercent": 10},
            "backup": None, "qualitySample": 0.05, "agreementMin": 0.9,
        },
        "protection": {
            "mode": "none", "strict": False, "quarantineAfter": 2, "quarantineWindowMinutes": 60,
            "quarantinePercentMax": 20, "scheme": "auto", "onFault": "failover",
            "plan": {"file": "plan.json", "sha256": SHA}, "maxOverheadPercent": 3,
        },
        "slo": {"latencyMs": 50, "percentile": 99.9, "defaultDeadlineMs": 1000},
    },
}  # fmt: skip
# What the loader refuses and no simple schema can: parts of its messages.
LOADER_ONLY = (
    "elements; the limit is 67108864",
    "tensor names must differ",
    "is not HOST:PORT/MODEL with a port",
    "needs 2 parity program(s)",
    "needs 3 parity program(s)",
)


def refusal(tree: object) -> str | None:
    """The loader's error for `tree`, or None."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        try:
            load(file)
        except SpecError as exc:
            return str(exc)
    return None


def leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The errors at the bottom: those inside of `anyOf` and its like, too."""
    yield error
    for inner in error.context or ():
        yield from leaves(inner)


def is_stricter(error: ValidationError) -> bool:
    """The schema wants the JSON type that the loader does not see, since it reads YAML as text."""
    return error.validator == "type" and isinstance(error.instance, bool | str)


# --- trees


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def schemas(schema: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that stands for a value, with the key that holds the value."""
    yield key, schema
    for name, inner in schema.get("properties", {}).items():
        yield from schemas(inner, name)
    for inner in (*schema.get("anyOf", ()), *schema.get("patternProperties", {}).values()):
        yield from schemas(inner, key)
    if "items" in schema:
        yield from schemas(schema["items"], key)


def edges(schema: dict[str, Any]) -> list[Any]:
    """Values within and just beyond the limits of a number, or the words of an enum."""
    low, high = schema.get("minimum"), schema.get("maximum")
    numbers = [low, low - 1, high, high + 1, high - 0.5] if low is not None and high else []
    inner = [value for part in schema.get("anyOf", ()) for value in edges(part)]
    return [*numbers, *schema.get("enum", ()), *inner]


EDGES = {key: found for key, schema in schemas(SCHEMA) if (found := edges(schema))}
KEYS = sorted({key for key, _ in schemas(SCHEMA)})
TEXTS = st.text(max_size=70).filter(lambda text: not text.endswith("\n"))  # `$` of Python's re
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    # A whole number is an integer in JSON, and so it is written by those who write it as YAML.
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: int(x) if x == int(x) else x),
    TEXTS,
    st.sampled_from(
        ["auto", "2", "-1", "a" * 63, "a" * 64, "parity.x", "x", "logits", "BYTES", "h:80/m",
         "h:0/m", "h:8/", " h:80/m", SHA, SHA + "0", "p" * 4096, "p" * 4097, -1, 0, 1, 2, 3, 4]
    ),
    st.sampled_from([[], {}, [None], ["p.pt2"], ["a", "b", "c", "d"], [1] * 9, [2**26, 2], [7],
                     {"program": "p"}, {"program": None}, {"program": "p", "sha256": None},
                     {"2": None}, {"16": ["p"]}, {"17": ["p"]}, {"02": ["p"]}, {"1": ["p"]}]),
)  # fmt: skip


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """WHOLE with up to four changes, each to a value inside a limit, at one, beyond, or to junk."""
    tree = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(0, 4))):
        # Redundancy has the rules across keys, so every second change goes there.
        top: tuple[Any, ...] = draw(st.sampled_from([(), ("spec", "redundancy")]))
        top = top if isinstance(tree.get("spec"), dict) and "redundancy" in tree["spec"] else ()
        *holder, key = draw(
            st.sampled_from([(*top, *p) for p in places(at(tree, top)) if top or p])
        )
        inner = at(tree, tuple(holder))
        change = draw(st.sampled_from(["edge", "edge", "junk", "drop", "add"]))
        if change == "drop":
            del inner[key]
        elif change == "add" and isinstance(inner, dict):
            inner[draw(st.sampled_from(KEYS) | TEXTS)] = copy.deepcopy(draw(JUNK))
        elif change == "edge" and EDGES.get(key):
            inner[key] = draw(st.sampled_from(EDGES[key]))
        else:
            inner[key] = copy.deepcopy(draw(JUNK))
    return tree


@settings(max_examples=400, deadline=None)
@given(trees())
def test_loader_and_schema_agree(tree: Any):
    errors = list(VALIDATOR.iter_errors(tree))
    refused = refusal(tree)
    if errors and refused is None:
        assert any(is_stricter(leaf) for error in errors for leaf in leaves(error)), errors
    elif refused is not None and not errors:
        assert any(part in refused for part in LOADER_ONLY), refused


# --- one change at a time: accepted or refused, by both


def changed(path: str, value: Any) -> Any:
    tree = copy.deepcopy(WHOLE)
    *holder, key = path.split(".")
    at(tree["spec"], tuple(holder))[key] = value
    return tree


REDUNDANCY = {
    "all left out": ({}, True),
    "replica": ({"policy": "replicate", "coder": "replica", "k": 1}, True),
    "replica with the default k": ({"coder": "replica"}, False),
    "replica with k 2": ({"coder": "replica", "k": 2}, False),
    "replica with k null": ({"coder": "replica", "k": None}, False),
    "sum with k 1": ({"k": 1}, False),
    "mean with k 1": ({"coder": "mean", "k": 1}, False),
    "mean": ({"policy": "parity", "coder": "mean", "k": 4}, True),
    "mean with r 2": ({"coder": "mean", "r": 2}, False),
    "parity by replica": ({"policy": "parity", "coder": "replica", "k": 1}, False),
    "parity with nothing": ({"policy": "parity"}, False),
    "parity with null": ({"policy": "parity", "parity": None}, False),
    "parity with no row": ({"policy": "parity", "parity": {"2": []}}, False),
    "parity for the default k": ({"policy": "parity", "parity": {"2": ["p"]}}, True),
    "parity for k null": ({"policy": "parity", "k": None, "parity": {"2": ["p"]}}, True),
    "parity for another k": ({"policy": "parity", "k": 3, "parity": {"2": ["p"]}}, False),
    "parity for k 16": ({"policy": "parity", "k": 16, "parity": {"16": ["p"]}}, True),
    "auto without a program": ({"policy": "auto", "k": 3}, True),
    "a program with a name like a number": ({"parity": {"2": [7]}}, True),
    "a pinned program": ({"parity": {"2": [{"program": "p", "sha256": SHA}]}}, True),
    "a pin without a program": ({"parity": {"2": [{"sha256": SHA}]}}, False),
    "an unknown key of a pin": ({"parity": {"2": [{"program": "p", "sha": SHA}]}}, False),
    "hedge by number": ({"hedge": {"delayMs": 7.5}}, True),
    "hedge by null": ({"hedge": {"delayMs": None}}, True),
    "hedge by another word": ({"hedge": {"delayMs": "soon"}}, False),
    "an unknown key": ({"polcy": "auto"}, False),
    "an unknown policy": ({"policy": "partiy"}, False),
    "a backup": ({"backup": {}}, False),
}


@pytest.mark.parametrize("case", REDUNDANCY)
def test_redundancy(case: str):
    value, sound = REDUNDANCY[case]
    tree = changed("redundancy", value)
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (sound, sound)


MODELS = {
    "program": ({"program": "p.pt2"}, True),
    "pinned program": ({"program": "p.pt2", "sha256": SHA}, True),
    "program and nulls": ({"program": "p.pt2", "repository": None, "endpoint": None}, True),
    "repository": ({"repository": "dir"}, True),
    "endpoint": ({"endpoint": "triton:8001/m"}, True),
    "none": ({}, False),
    "null": ({"program": None}, False),
    "two": ({"program": "p.pt2", "endpoint": "triton:8001/m"}, False),
    "sha256 of a repository": ({"repository": "dir", "sha256": SHA}, False),
    "sha256 of null": ({"repository": "dir", "program": None, "sha256": SHA}, False),
}


@pytest.mark.parametrize("case", MODELS)
def test_one_source(case: str):
    value, sound = MODELS[case]
    tensors = {key: WHOLE["spec"]["model"][key] for key in ("inputs", "outputs")}
    tree = changed("model", {**value, **tensors})
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (sound, sound)


@pytest.mark.parametrize("source", ["program", "repository", "endpoint"])
@pytest.mark.parametrize("mode", ["none", "detect", "correct", None])
def test_protection_rewrites_a_program(source: str, mode: str | None):
    tensors = {key: WHOLE["spec"]["model"][key] for key in ("inputs", "outputs")}
    tree = changed("model", {source: "h:80/m", **tensors})
    tree["spec"]["protection"] = {"mode": mode}
    sound = source == "program" or mode in ("none", None)
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (sound, sound)


@pytest.mark.parametrize(
    ("protection", "sound"),
    [
        ({"plan": "p.json"}, True),
        ({"plan": "p.json", "scheme": None, "maxOverheadPercent": 0}, True),
        ({"scheme": "dup"}, True),
        ({"plan": "p.json", "scheme": "row"}, False),
        ({"plan": None, "maxOverheadPercent": 3}, False),
        ({"maxOverheadPercent": 3}, False),
        ({"plan": None, "scheme": "tile", "maxOverheadPercent": None}, True),
    ],
    ids=str,
)
def test_a_plan_chooses_and_has_the_times(protection: dict[str, Any], sound: bool):
    tree = changed("protection", {"mode": "correct", **protection})
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (sound, sound)


@pytest.mark.parametrize("key", ["inputs", "outputs"])
@pytest.mark.parametrize("tensor", [("BYTES", [1]), ("BOOL", [2]), ("FP32", [-1])], ids=str)
def test_parity_needs_what_can_be_added_up(key: str, tensor: tuple[str, list[int]]):
    dtype, shape = tensor
    tree = changed(f"model.{key}", [{"name": "x", "dtype": dtype, "shape": shape}])
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (False, False)
    for redundancy in ({"policy": "auto"}, None):
        tree["spec"]["redundancy"] = redundancy
        assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (True, True)


def test_a_name_may_look_like_a_number():
    tree = {**WHOLE, "metadata": {"name": 7}}
    assert (refusal(tree) is None, VALIDATOR.is_valid(tree)) == (True, True)


# --- where they differ, each once


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.inputs.0.shape", [2**26, 2], LOADER_ONLY[0]),
        ("model.inputs", [{"name": "x", "dtype": "FP32", "shape": []}] * 2, LOADER_ONLY[1]),
        ("redundancy.r", 2, LOADER_ONLY[3]),
        ("redundancy.r", 3, LOADER_ONLY[4]),
    ],
)
def test_only_the_loader_refuses(path: str, value: Any, message: str):
    tree = copy.deepcopy(WHOLE)
    *holder, key = (int(part) if part.isdigit() else part for part in path.split("."))
    at(tree["spec"], tuple(holder))[key] = value
    assert VALIDATOR.is_valid(tree)
    assert message in (refusal(tree) or "")


def test_only_the_loader_refuses_a_port_that_is_none():
    model = WHOLE["spec"]["model"]
    tensors = {key: model[key] for key in ("inputs", "outputs")}
    tree = changed("model", {"endpoint": "triton:99999/m", **tensors})
    assert VALIDATOR.is_valid(tree)
    assert LOADER_ONLY[2] in (refusal(tree) or "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("redundancy.k", "2"),
        ("redundancy.groupMsMax", "5"),
        ("model.maxBatch", "8"),
        ("model.program", True),
        ("redundancy.hedge.delayMs", "7.5"),
    ],
)
def test_only_the_schema_refuses_the_wrong_json_type(path: str, value: Any):
    tree = changed(path, value)
    assert refusal(tree) is None
    assert not VALIDATOR.is_valid(tree)


# --- the schema itself


def test_the_schema_is_sound_and_the_whole_example_fits():
    assert SCHEMA["$schema"] == DRAFT
    Draft7Validator.check_schema(SCHEMA)
    assert VALIDATOR.is_valid(WHOLE)
    assert refusal(WHOLE) is None


def test_the_schema_of_the_part_under_spec_stands_alone():
    assert spec_schema() == {
        key: value for key, value in SCHEMA["properties"]["spec"].items() if key != "description"
    }
    assert "$ref" not in str(spec_schema())
    spec_schema()["properties"].clear()
    assert spec_schema()["properties"]


def test_every_key_is_described_and_has_its_default():
    named = [p for _, schema in schemas(SCHEMA) for p in schema.get("properties", {}).items()]
    assert [key for key, schema in named if not schema.get("description")] == []
    redundancy = spec_schema()["properties"]["redundancy"]["properties"]
    assert redundancy["groupMsMax"]["default"] == RedundancySpec.group_ms_max
    assert redundancy["hedge"]["properties"]["delayMs"]["default"] == "auto"
    assert spec_schema()["properties"]["slo"]["properties"]["percentile"]["default"] == (
        SloSpec.percentile
    )


def test_nothing_unknown_gets_in():
    objects = [
        (key, schema) for key, schema in schemas(SCHEMA) if "object" in schema.get("type", ())
    ]
    assert len(objects) == 13
    assert [key for key, schema in objects if schema["additionalProperties"] is not False] == []
