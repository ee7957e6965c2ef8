"""The keys under `model` and `metadata`: where the model comes from and what it takes and gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proa.spec.readers import (
    NEEDED,
    Field,
    Reader,
    Rule,
    anchored,
    given,
    integer,
    list_of,
    one_of,
    table,
    text,
)
from proa.spec.section import Section
from proa.spec.types import DTYPES, ModelSpec, ProgramRef, TensorSpec

ELEMENTS_MAX = 1 << 26
PORT_MAX = 65_535

_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_TENSOR = r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}"
_SHA256 = r"[0-9a-f]{64}"
_ENDPOINT = r"[^\s/:]+:([0-9]{1,5})/[^\s/]+"
_SOURCES = ("program", "repository", "endpoint")


# --- readers of single values


def _name(section: Section) -> str:
    value = text(section)
    if not re.fullmatch(_NAME, value):
        raise section.holder.error("name must be 1 to 63 characters of a-z, 0-9 and '-'")
    return value


def _tensor_name(section: Section) -> str:
    value = text(section)
    if not re.fullmatch(_TENSOR, value) or value.startswith("parity."):
        message = f"name {value!r}: letters, digits, '_', '.', '-'; not 'parity.…'"
        raise section.holder.error(message)
    return value


def _sha256(section: Section) -> str | None:
    value = text(section)
    if not re.fullmatch(_SHA256, value):
        raise section.error("must be a sha256 of 64 lower-case hexadecimal digits")
    return value


def _endpoint(section: Section) -> str | None:
    value = text(section)
    match = re.fullmatch(_ENDPOINT, value)
    if match is None or not 1 <= int(match[1]) <= PORT_MAX:
        raise section.error(f"{value!r} is not HOST:PORT/MODEL with a port from 1 to {PORT_MAX}")
    return value


def _dim(section: Section) -> int:
    dim = integer(-1, ELEMENTS_MAX)(section)
    if dim == 0:
        raise section.holder.error("a dimension is at least 1, or -1 where it varies")
    return dim


def _word(read: Callable[[Section], Any], pattern: str, **schema: Any) -> Reader[Any]:
    return Reader(read, {"type": "string", "pattern": anchored(pattern), **schema})


NAME = _word(_name, _NAME, type=["string", "integer"], minimum=0)
TENSOR_NAME = _word(_tensor_name, _TENSOR, **{"not": {"pattern": r"^parity\."}})
SHA256 = _word(_sha256, _SHA256)
ENDPOINT = _word(_endpoint, _ENDPOINT, maxLength=text.schema["maxLength"])
PATH = Reader(lambda section: section.folder / text(section), text.schema)
DIM = Reader(_dim, {**integer(-1, ELEMENTS_MAX).schema, "not": {"const": 0}})


# --- tensors


def _shape(section: Section) -> tuple[int, ...]:
    dims = _DIMS(section)
    elements = 1
    for dim in dims:
        elements *= abs(dim)
    if elements > ELEMENTS_MAX:
        raise section.error(f"has {elements} elements; the limit is {ELEMENTS_MAX}")
    return dims


def _tensors(section: Section) -> tuple[TensorSpec, ...]:
    found = _TENSOR_LIST(section)
    if not found:
        raise section.error("needs at least one tensor")
    if len({t.name for t in found}) != len(found):
        raise section.error("tensor names must differ")
    return found


_DIMS = list_of(DIM, 8)
SHAPE = Reader(_shape, _DIMS.schema)
TENSOR = table(
    TensorSpec,
    Field("name", TENSOR_NAME, NEEDED, "name of the tensor in requests and answers"),
    Field("dtype", one_of(DTYPES), NEEDED, "type of its elements, as the protocol names it"),
    Field("shape", SHAPE, NEEDED, "dimensions without the batch axis; -1 where one varies"),
)
_TENSOR_LIST = list_of(TENSOR, 16)
TENSORS = Reader(_tensors, {**_TENSOR_LIST.schema, "minItems": 1})


# --- model


def _build_model(program: Path | None, sha256: str | None, **rest: Any) -> ModelSpec:
    return ModelSpec(program=None if program is None else ProgramRef(program, sha256), **rest)


def _one_source(section: Section, _: ModelSpec) -> None:
    if sum(section.has(key) for key in _SOURCES) != 1:
        raise section.error("give exactly one of program, repository, endpoint")


def _sha256_of_program(section: Section, found: ModelSpec) -> None:
    if found.program is None and section.has("sha256"):
        raise section.error("sha256 goes with program")


MODEL = table(
    _build_model,
    Field("program", PATH, None, "file of the deployed model: a torch.export archive (.pt2)"),
    Field("sha256", SHA256, None, "hash that `program` must have; left out, `proa pack` pins it"),
    Field("repository", PATH, None, "folder of a Triton model repository of your own"),
    Field("endpoint", ENDPOINT, None, "HOST:PORT/MODEL of a Triton that already runs"),
    Field("maxBatch", integer(1, 1024), ModelSpec.max_batch, "largest batch axis of one request"),
    Field("inputs", TENSORS, NEEDED, "the model's inputs; their names differ"),
    Field("outputs", TENSORS, NEEDED, "the model's outputs; their names differ"),
    rules=(
        Rule(_one_source, {"oneOf": [given(key) for key in _SOURCES]}),
        Rule(_sha256_of_program, {"if": given("sha256"), "then": given("program")}),
    ),
)
