"""What a run found so far: sections, their errors, and the file that holds both."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Results by section. A section that fails is an error in the file, and the next one runs."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.found: dict[str, Any] = {"errors": []}
        self._started, self._seconds = time.monotonic(), seconds

    @property
    def left_s(self) -> float:
        return self._seconds - (time.monotonic() - self._started)

    def error(self, where: str, text: str) -> None:
        self.found["errors"].append({"where": where, "error": text})
        print(f"ERROR in {where}: {text.strip().splitlines()[-1]}", flush=True)

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Runs `work` and keeps what it returns, or what it raised."""
        began = time.monotonic()
        if self.left_s <= 0:
            self.error(name, "not measured: no time was left")
            return
        try:
            self.found[name] = work()
        except Exception:  # noqa: BLE001  # the sections after it must not be lost
            self.error(name, traceback.format_exc())
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(self.found), indent=1, allow_nan=False)
        self.path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no Inf: they become text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
