"""The output of many processes as one: every line behind the name of its process."""

from __future__ import annotations

import os
from typing import TextIO

_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)


_WIDTH_MIN = 9  # of worker-12


class LogPrinter:
    """Writes `worker-2 | line`, in a colour for each process where `out` is a terminal.

    Honours NO_COLOR (https://no-color.org).
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._colours: dict[str, int] = {}

    def __call__(self, name: str, line: str) -> None:
        head = f"{name:<{_WIDTH_MIN}} |"
        if self._coloured:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            head = f"\x1b[{colour}m{head}\x1b[0m"
        self._out.write(f"{head} {line}\n")
        self._out.flush()
