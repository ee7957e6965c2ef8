"""Readers: what a value may be, said once, for reading it from a file and for its JSON Schema."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

from proa.spec.section import NULL, Section

TEXT_MAX = 4096

T = TypeVar("T")
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Reads a T. `schema` (JSON Schema draft-07) takes what `read` takes.

    Every schema has `type` or `anyOf`, refers to nothing outside itself, and its patterns are those
    that ECMA, Python and RE2 (the one Helm has) read alike.
    """

    read: Callable[[Section], T]
    schema: Schema

    def __call__(self, section: Section) -> T:
        return self.read(section)


@dataclass(frozen=True)
class Rule(Generic[T]):
    """What holds across keys. `check` raises SpecError; `schema` says the same, or a part of it."""

    check: Callable[[Section, T], None]
    schema: Schema


@dataclass(frozen=True)
class Needed:
    """The default of a key that has none."""


NEEDED = Needed()


@dataclass(frozen=True)
class Field(Generic[T]):
    """A key of a mapping. `shown`: the default as it is written, where that differs."""

    key: str
    reader: Reader[T]
    default: T | Needed
    doc: str
    shown: Any = None

    @property
    def attribute(self) -> str:
        """The key as a Python name: `groupMsMax` is `group_ms_max`."""
        return re.sub("[A-Z]", lambda upper: f"_{upper[0].lower()}", self.key)

    def take(self, section: Section) -> T:
        """The value in `section`, or the default."""
        found = section.child(self.key, required=isinstance(self.default, Needed))
        if found is not None:
            return self.reader(found)
        assert not isinstance(self.default, Needed)
        return self.default

    @property
    def schema(self) -> dict[str, Any]:
        """The value's schema; null is as good as leaving an optional key out."""
        if isinstance(self.default, Needed):
            return {"description": self.doc, **self.reader.schema}
        default = self.default if self.shown is None else self.shown
        known = {"default": default} if isinstance(default, str | int | float) else {}
        return {"description": self.doc, **known, **or_null(self.reader.schema)}


def table(build: Callable[..., T], *fields: Field[Any], rules: Sequence[Rule[T]] = ()) -> Reader[T]:
    """A mapping with these keys and no others: `build` gets the values by attribute."""

    def read(section: Section) -> T:
        section.keys()
        values = {field.attribute: field.take(section) for field in fields}
        section.done()
        found = build(**values)
        for rule in rules:
            rule.check(section, found)
        return found

    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.key: field.schema for field in fields},
    }
    needed = [field.key for field in fields if isinstance(field.default, Needed)]
    if needed:
        schema["required"] = needed
    if rules:
        schema["allOf"] = [rule.schema for rule in rules]
    return Reader(read, schema)


def list_of(reader: Reader[T], limit: int) -> Reader[tuple[T, ...]]:
    """A list of at most `limit` values."""
    return Reader(
        lambda section: tuple(reader(item) for item in section.items(limit=limit)),
        {"type": "array", "maxItems": limit, "items": reader.schema},
    )


def _scalar(section: Section, what: str) -> str:
    if not isinstance(section.node, yaml.ScalarNode) or section.node.tag == NULL:
        raise section.error(f"must be {what}")
    value = section.node.value
    if not value or len(value) > TEXT_MAX:
        raise section.error(f"must be {what} of 1 to {TEXT_MAX} characters")
    return str(value)


# YAML text that looks like a number is text all the same: a file may be called 7.
text = Reader(
    lambda section: _scalar(section, "a string"),
    {"type": ["string", "number"], "minLength": 1, "maxLength": TEXT_MAX},
)


def one_of(names: Sequence[str]) -> Reader[str]:
    """One of `names`."""

    def read(section: Section) -> str:
        value = text(section)
        if value not in names:
            raise section.error(f"{value!r} is not one of {', '.join(names)}")
        return value

    return Reader(read, {"type": "string", "enum": list(names)})


boolean: Reader[bool] = Reader(
    lambda section: one_of(("true", "false"))(section) == "true", {"type": "boolean"}
)


def number(low: float, high: float) -> Reader[float]:
    """A number from `low` to `high`."""

    def read(section: Section) -> float:
        value = _scalar(section, "a number")
        try:
            parsed = float(value)
        except ValueError as exc:
            raise section.error(f"{value!r} is not a number") from exc
        if not (math.isfinite(parsed) and low <= parsed <= high):
            raise section.error(f"{value} is out of range; the limits are {low:g} to {high:g}")
        return parsed

    return Reader(read, {"type": "number", "minimum": low, "maximum": high})


def integer(low: int, high: int) -> Reader[int]:
    """An integer from `low` to `high`."""

    def read(section: Section) -> int:
        value = _scalar(section, "an integer")
        try:
            parsed = int(value)
        except ValueError as exc:
            raise section.error(f"{value!r} is not an integer") from exc
        if not low <= parsed <= high:
            raise section.error(f"{value} is out of range; the limits are {low} to {high}")
        return parsed

    return Reader(read, {"type": "integer", "minimum": low, "maximum": high})


def unsupported(message: str) -> Reader[None]:
    """A key with a name and no use yet: only null."""

    def read(section: Section) -> None:
        raise section.error(message)

    return Reader(read, {"type": "null"})


def anchored(pattern: str) -> str:
    """`pattern` as JSON Schema wants it to mean what `fullmatch` means."""
    return f"^({pattern})$"


def given(key: str) -> Schema:
    """The schema of a mapping in which `key` is given and not null."""
    return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}


def has(**values: Any) -> Schema:
    """The schema of a mapping in which each of these keys is given, with this value."""
    properties = {key: {"const": value} for key, value in values.items()}
    return {"type": "object", "required": list(values), "properties": properties}


def or_null(schema: Schema) -> dict[str, Any]:
    """`schema`, or null."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if "null" in kinds:
        return dict(schema)
    found = {**schema, "type": [*kinds, "null"]}
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    return found
