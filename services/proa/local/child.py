"""One operating-system process: started, read, signalled, ended. It starts no second one.

Not asyncio's subprocesses: under uvloop those fork through Python's hooks, and gRPC's hang there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proa.local.priority import kill
from proa.local.session import Family

_LAUNCH = Path(__file__).with_name("launch.py")
_LINE_BYTES_MAX = 8192
_TAIL_LINES = 20
_REAP_S_MAX = 5.0


class Child:
    """A running process that leads its own session and is killed when we die.

    It must be started from a thread that lives as long as the process may: the kernel kills it when
    that thread ends. `on_line` gets every line of its output, stdout and stderr together.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        nice: int,
        on_line: Callable[[str], None],
    ) -> None:
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(nice)]
        self._popen = subprocess.Popen(
            [*launch, *argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.family = Family(self.pid)
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._on_line = on_line
        self._cleared = False
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)
        self._reading = asyncio.create_task(self._read(), name=f"output of {self.pid}")

    @property
    def running(self) -> bool:
        return not self._exited.done()

    async def exited(self) -> int:
        """Wait for the end: the exit status, or minus the signal's number."""
        return await asyncio.shield(self._exited)

    def signal(self, number: signal.Signals, *, tree: bool) -> None:
        """Signal the process, or with `tree` everything it started as well. Of SIGKILL, who was
        started lately hears in `clear`."""
        if not self.running:
            return
        if not tree:
            signal.pidfd_send_signal(self._pidfd, number)
        elif number is signal.SIGKILL:
            kill(self.family.seen())
        else:
            self.family.signal(number)

    async def terminate(self, grace_s: float) -> None:
        """SIGTERM; when it has not ended after `grace_s` seconds, SIGKILL to all it started."""
        self.signal(signal.SIGTERM, tree=False)
        self.signal(signal.SIGCONT, tree=True)  # a stopped process would sleep through its drain
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited(), grace_s)
        await self.clear()

    async def clear(self) -> None:
        """Kill what is left of all it started and read the rest of the output."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _REAP_S_MAX
        # The kernel tells of the end of a child, not of the end of a child's child. Who is ending
        # starts nobody: the rest of the machine need not be looked at meanwhile. In a thread: this
        # one may have a load to generate.
        while (members := await asyncio.to_thread(self.family.members)) and loop.time() < end:
            kill(members)
            while self.family.seen() and loop.time() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await self.exited()
        self._cleared = True
        # Somebody else may hold the pipe open: it is not waited for.
        await asyncio.wait([self._reading], timeout=0.5)
        self._reading.cancel()

    def kill(self) -> None:
        """SIGKILL to it and all it started, at once, without waiting."""
        if not self._cleared:  # after that its pid may name another process
            kill(self.family.members())

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(self._popen.wait())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._popen.stdout
        )
        rest = b""
        try:
            while chunk := await reader.read(_LINE_BYTES_MAX):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > _LINE_BYTES_MAX:
                    self._take(rest)
                    rest = b""
        finally:
            if rest:
                self._take(rest)
            transport.close()

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.tail.append(text)
        self._on_line(text)
