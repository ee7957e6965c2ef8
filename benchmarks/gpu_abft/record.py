"""What a run found so far: sections, their errors, and the file that holds both.

One process at a time has a record; another one opens the same file after it. A file is written
aside and renamed, so it is whole whenever a process is killed.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SAVE_S = 8.0  # between two saves while rows come in: writing all of them takes a while


class Lost(Exception):
    """The GPU no longer answers this process, as after an illegal access: another must go on."""


class Record:
    """Results by section. A section that fails is an error in the file, and the next one runs.

    `end_s`: of `time.monotonic`, the same in every process. `run`: names this call of the script,
    whose processes tell what is theirs by it. `alive`: whether the GPU still answers.
    """

    def __init__(
        self, path: Path, end_s: float, *, run: str = "", alive: Callable[[], bool] = lambda: True
    ) -> None:
        self.path, self.run = path, run
        self.found: dict[str, Any] = {"errors": []}
        self._end_s, self.alive = end_s, alive
        self._section, self._saved_s = "", 0.0

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    @property
    def mark(self) -> Path:
        """Names the section and the piece of it that is being measured, and when it began."""
        return self.path.with_name(self.path.name + ".at")

    def load(self, path: Path | None = None) -> None:
        """What a file has, by default this one's, in the place of what was found."""
        self.found = json.loads((path or self.path).read_text(encoding="utf-8"))

    def error(self, where: str, text: str, section: str = "") -> None:
        """`where`: what was tried; `section`: the current one."""
        found = {"section": section or self._section, "where": where, "error": text}
        self.found["errors"].append(found)
        print(f"ERROR in {where}: {text.strip().splitlines()[-1]}", flush=True)

    def check(self, right: bool, where: str, found: object) -> None:
        """An error where it is not right. What was measured stays: it says why."""
        if not right:
            self.error(where, f"not as it must be: {found}")

    @contextmanager
    def trying(self, where: str) -> Iterator[None]:
        """What fails within is an error, and the next thing is tried. Raises Lost."""
        try:
            yield
        except Lost:
            raise
        except Exception:  # noqa: BLE001  # what comes after it must not be lost
            self.error(where, traceback.format_exc())
            if not self.alive():
                self.save()
                raise Lost(where) from None

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Runs `work` and keeps what it returns, or what it raised; rows that it yields are kept as
        they come. Raises Lost."""
        began = time.monotonic()
        self._section = name
        try:
            if self.left_s <= 0:
                self.error(name, "not measured: no time was left")
                return
            self.at(name)
            with self.trying(name):
                self._keep(name, work())
                if not self.alive():
                    raise RuntimeError("the GPU is lost")
        finally:
            taken = time.monotonic() - began
            spent = self.found.setdefault("seconds", {})  # of all processes
            spent[name] = round(spent.get(name, 0.0) + taken, 1)
            print(f"{name}: {taken:.1f} s", flush=True)
            self.save()
            self._section = ""

    def _keep(self, name: str, made: Any) -> None:
        if not isinstance(made, Iterator):
            if made is not None:
                self.found[name] = made
            return
        rows: list[Any] = []
        self.found[name] = rows
        for row in made:
            rows.append(row)
            self.at(name)
            if self.due:
                self.save()
            if self.left_s <= 0:
                self.error(name, "the rest is not measured: no time was left")
                return

    def at(self, what: str) -> None:
        """Says what is tried next: who ends this process, or finds it ended, can tell."""
        if self.mark.parent.is_dir():
            self.mark.write_text(json.dumps({"section": self._section, "what": what}))

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved_s >= SAVE_S

    def save(self, *, indent: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            text = json.dumps(self.found, indent=indent, allow_nan=False)
        except ValueError:
            text = json.dumps(_plain(self.found), indent=indent, allow_nan=False)
        aside = self.path.with_name(self.path.name + ".new")
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(self.path)
        self._saved_s = time.monotonic()

    def close(self) -> None:
        """The whole file, for people to read, and no mark."""
        self.save(indent=1)
        with suppress(FileNotFoundError):
            self.mark.unlink()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no Inf: they become text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
