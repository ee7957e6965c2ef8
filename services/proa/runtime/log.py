"""One-line logs on stderr: `12:01:02.345 INFO  encoder  message key=value`, or JSON.

A record may bring `extra={"fields": {...}}`: keys beside the message. One that is logged within a
traced call, or with `extra={"trace_id": ..., "span_id": ...}`, tells which.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from proa.errors import SettingsError
from proa.telemetry import current

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
TEXT, JSON = FORMATS = ("text", "json")

# Whatever a terminal or a log shipper may take for the end of a line or a command.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")
} | {ord("\n"): "\\n", ord("\r"): "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_BARE = re.compile(r"[^\s\"=\\]+")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")


class LineFormatter(logging.Formatter):
    """Control characters are escaped, so that no peer can forge a line; tracebacks follow on lines
    of their own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = _fields(record)
        trace_id, _span_id = _trace(record)
        if trace_id:
            fields.setdefault("trace_id", trace_id)
        pairs = "".join(f" {key}={value}" for key, value in _as_text(fields))
        message = (record.getMessage() + pairs).translate(_CONTROLS)
        line = f"{time} {record.levelname:<5} {self._service}  {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line, ASCII: time (UTC), level, service, logger, message, trace_id and span_id
    where there is a trace, exception (a traceback), and the record's fields beside them. A field
    with one of these names gets `fields.` before it, but for the ids."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for key, value in _fields(record).items():
            while key in line:
                key = f"fields.{key}"  # until it is free
            line[key] = _plain(value)
        for key, found in zip(("trace_id", "span_id"), _trace(record), strict=True):
            if found:
                line.setdefault(key, found)
        return json.dumps(line)


def setup(service: str, level: str = "INFO", style: str = TEXT) -> None:
    """Send every log of the process to stderr; times are UTC. Errors: SettingsError."""
    if level not in LEVELS:
        raise SettingsError(f"PROA_LOG_LEVEL={level!r} is not one of {', '.join(LEVELS)}")
    if style not in FORMATS:
        raise SettingsError(f"PROA_LOG_FORMAT={style!r} is not one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonFormatter if style == JSON else LineFormatter)(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def setup_from(service: str, environ: Mapping[str, str]) -> None:
    """As PROA_LOG_LEVEL and PROA_LOG_FORMAT say. Errors: SettingsError, which can be logged."""
    setup(service)
    setup(service, environ.get("PROA_LOG_LEVEL", "INFO"), environ.get("PROA_LOG_FORMAT", TEXT))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = getattr(record, "fields", None)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _trace(record: logging.LogRecord) -> tuple[str, str]:
    """Trace and span id, in hex: the record's own, else the current call's, else empty."""
    trace_id = getattr(record, "trace_id", None)
    if trace_id:
        return str(trace_id), str(getattr(record, "span_id", None) or "")
    context = current.get()
    return (context.trace_hex, context.span_hex) if context else ("", "")


def _plain(value: Any) -> str | int | float | bool | None:
    """What JSON has; it has no NaN and no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _as_text(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in fields.items():
        found = _plain(value)
        if found is None:
            continue
        if isinstance(found, bool):
            text = str(found).lower()
        elif isinstance(found, float):
            text = f"{found:.6g}"
        else:
            text = str(found)
        yield _UNFIT.sub("_", key), text if _BARE.fullmatch(text) else json.dumps(text)
