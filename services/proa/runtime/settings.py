"""Settings from the environment: frozen dataclasses, built once, strict.

    @dataclass(frozen=True)
    class EncoderSettings:
        port: int = setting(8010, env="PROA_ENCODER_PORT", minimum=1, maximum=65535, why="gRPC")

A name with the service's prefix that no field declares is an error: a misspelt setting must not be
silently a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from proa.errors import SettingsError

T = TypeVar("T")
Number = int | float

REQUIRED: Any = dataclasses.MISSING
_KEY = "proa.setting"
_TRUE, _FALSE = ("true", "1"), ("false", "0")
_ENV = re.compile(r"(?:PROA_[A-Z0-9]+|OTEL)_[A-Z0-9_]+")
_OURS = "PROA_"  # other names are a standard's: there are more than we read, and empty is not set


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its type and default. `unit`: as in `s`, `bytes`."""

    env: str
    unit: str = ""
    why: str = ""
    minimum: Number | None = None
    maximum: Number | None = None
    choices: tuple[str, ...] | None = None


def setting(
    default: T,
    *,
    env: str,
    unit: str = "",
    why: str = "",
    minimum: Number | None = None,
    maximum: Number | None = None,
    choices: Sequence[str] | None = None,
) -> T:
    """A field of a settings dataclass, read from variable `env` (PROA_<SERVICE>_<NAME>, or a name
    of OpenTelemetry's).

    default REQUIRED: the variable must be set. Types: int, float, bool, str, Path, each `| None`.
    """
    assert _ENV.fullmatch(env), env
    known = Setting(env, unit, why, minimum, maximum, tuple(choices) if choices else None)
    found: T = dataclasses.field(default=default, metadata={_KEY: known})
    return found


def settings_of(cls: type[Any]) -> dict[str, Setting]:
    """The settings of a class by field name, for docs and tests."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata}


def from_env(cls: type[T], environ: Mapping[str, str]) -> T:
    """An instance of the settings class `cls`. Errors: SettingsError, naming variable and limit."""
    known = settings_of(cls)
    _refuse_unknown(known.values(), environ)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cast("Any", cls)):
        one = known.get(field.name)
        if one is None:
            continue
        if environ.get(one.env) or (one.env in environ and one.env.startswith(_OURS)):
            values[field.name] = _parsed(environ[one.env], one, hints[field.name])
        elif field.default is dataclasses.MISSING:
            raise SettingsError(f"{one.env} is not set; it is required{_because(one)}")
    return cls(**values)


def _refuse_unknown(known: Any, environ: Mapping[str, str]) -> None:
    names = {one.env for one in known}
    prefixes = {"_".join(name.split("_")[:2]) + "_" for name in names if name.startswith(_OURS)}
    for name in sorted(environ):
        if name in names or not any(name.startswith(prefix) for prefix in prefixes):
            continue
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{name} is not a setting{hint}")


def _parsed(text: str, one: Setting, hint: Any) -> Any:
    kind = _plain(hint)
    value = _PARSERS[kind](text, one)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_limits(text, value, one)
    if one.choices is not None and text not in one.choices:
        raise SettingsError(f"{one.env}={text!r} is not one of {', '.join(one.choices)}")
    return value


def _plain(hint: Any) -> Any:
    """int for `int` and for `int | None`: a variable that is set is never None."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    assert hint in _PARSERS, f"a setting cannot have the type {hint}"
    return hint


def _check_limits(text: str, value: Number, one: Setting) -> None:
    unit = f" {one.unit}" if one.unit else ""
    if one.minimum is not None and value < one.minimum:
        raise SettingsError(f"{one.env}={text!r} is below the minimum {one.minimum}{unit}")
    if one.maximum is not None and value > one.maximum:
        raise SettingsError(f"{one.env}={text!r} is above the maximum {one.maximum}{unit}")


def _int(text: str, one: Setting) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise SettingsError(f"{one.env}={text!r} is not an integer")
    return int(text)


def _float(text: str, one: Setting) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{one.env}={text!r} is not a finite number")
    return value


def _bool(text: str, one: Setting) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise SettingsError(f"{one.env}={text!r} is neither true nor false")
    return text.lower() in _TRUE


def _text(text: str, one: Setting) -> str:
    if not text:
        raise SettingsError(f"{one.env} is empty; leave it out for the default")
    return text


def _path(text: str, one: Setting) -> Path:
    return Path(_text(text, one))


def _because(one: Setting) -> str:
    return f": {one.why}" if one.why else ""


_PARSERS: dict[Any, Callable[[str, Setting], Any]] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _text,
    Path: _path,
}
