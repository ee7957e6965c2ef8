"""A run that can be broken off: one JSON line for each finished part of it, and its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from proa.errors import InvalidRequest

FORMAT = 1
Tree = Mapping[str, Any]


class Journal:
    """`done`: what earlier runs and this one finished, by name. A line that was cut off by the
    end of a run is dropped, and its part done again."""

    def __init__(self, path: Path, run: Tree) -> None:
        """Open or begin the journal of `run`, its arguments. Raises InvalidRequest for a file
        that is no journal, or that of a run with other arguments."""
        self.path = path
        self.done: dict[str, Any] = {}
        header = {"journal": FORMAT, "run": json.loads(json.dumps(dict(run)))}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        if lines:
            self._check(header, lines[0])
            for line in lines[1:]:
                self.done[line["name"]] = line["found"]
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if not lines:
            self._write(header)

    def add(self, name: str, found: Any) -> None:
        """Keep what a part found; on disk when this returns."""
        self._write({"name": name, "found": found})
        self.done[name] = found

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _write(self, line: Tree) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _check(self, header: Tree, found: Tree) -> None:
        before, now = found.get("run"), header["run"]
        if found.get("journal") != FORMAT or not isinstance(before, dict):
            raise InvalidRequest(
                f"{self.path}: not a journal of this version; choose another --out"
            )
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if other:
            name = other[0]
            raise InvalidRequest(
                f"{self.path}: the journal of another run: {name} was {before.get(name)!r}, now"
                f" {now.get(name)!r}; choose another --out, or delete the journal"
            )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The journal's lines; what follows the last newline is cut off the file."""
    if not path.exists():
        return []
    try:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"{path}: not a journal: {exc}") from exc
    if not all(isinstance(line, dict) for line in lines):
        raise InvalidRequest(f"{path}: not a journal")
    if len(whole) < len(raw):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    return lines
