"""The runner's end of a keeper."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any, Self

from proa.errors import Unavailable
from proa_chaos.local.keeper import GO

START_S_MAX = 30.0  # Python starts, on a busy machine
END_S_MAX = 10.0


class Helper:
    """One keeper process. `await Helper.start(order)`, then `go`, then `end`."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        # A session of its own: Ctrl-C in the terminal is for the runner, who then rolls back.
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "proa_chaos.local.keeper", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    @classmethod
    async def start(cls, order: Mapping[str, Any]) -> Self:
        """Start it and wait until it can act at once. Errors: Unavailable."""
        helper = cls(order)
        await helper._hear("ready")
        return helper

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def go(self, ttl_s: float) -> None:
        """Let the fault act, for `ttl_s` at most. Errors: Unavailable."""
        try:
            self._stdin.write(f"{GO} {ttl_s:.3f}\n")
            self._stdin.flush()
        except BrokenPipeError as exc:
            raise Unavailable("the helper of the fault has died") from exc
        await self._hear("on")

    async def end(self) -> None:
        """End the fault, if it has not ended yet, and wait until it has. Errors: Unavailable."""
        self.let_go()
        try:
            await asyncio.to_thread(self._popen.wait, END_S_MAX)
        except subprocess.TimeoutExpired as exc:
            self._popen.terminate()
            raise Unavailable(f"the helper {self.pid} of a fault does not end") from exc

    def let_go(self) -> None:
        """End the fault without waiting for it."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    @property
    def _stdin(self) -> IO[str]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    async def _hear(self, word: str) -> None:
        assert self._popen.stdout is not None
        reading = asyncio.to_thread(self._popen.stdout.readline)
        try:
            said = await asyncio.wait_for(reading, START_S_MAX)
        except TimeoutError as exc:
            raise Unavailable(f"the helper of a fault did not say {word!r} in time") from exc
        if said.strip() != word:
            raise Unavailable(f"the helper of a fault has died; it should have said {word!r}")
