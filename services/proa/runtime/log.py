"""One-line logs on stderr: `12:01:02.345 INFO  encoder  message key=value`."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from proa.errors import SettingsError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class LineFormatter(logging.Formatter):
    """Line breaks in a message are escaped, so that no peer can forge a line; tracebacks follow
    on lines of their own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{time} {record.levelname:<5} {self._service}  {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup(service: str, level: str = "INFO") -> None:
    """Send every log of the process to stderr; times are UTC. Errors: SettingsError."""
    if level not in LEVELS:
        raise SettingsError(f"PROA_LOG_LEVEL={level!r} is not one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
