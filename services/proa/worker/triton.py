"""One tritonserver process with its stubs: started, awaited, stopped, swept up after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal

from proa.errors import Unavailable
from proa.worker.launch import EXIT_TIMEOUT_S, Launch, clean_shm, die_with_parent

log = logging.getLogger(__name__)

KILL_AFTER_S = EXIT_TIMEOUT_S + 5.0  # unloading models comes after the exit timeout


class Triton:
    """A running tritonserver: it leads a process group of its own, which holds its stubs."""

    def __init__(self, launch: Launch, process: asyncio.subprocess.Process) -> None:
        self._launch = launch
        self._process = process

    @classmethod
    async def start(cls, launch: Launch) -> Triton:
        """Start it. It gets SIGKILL when this process dies. Call from the main thread."""
        leaked = clean_shm(launch.shm_prefix)
        if leaked:
            log.warning("removed shared memory of a killed worker regions=%d", leaked)
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            env=dict(launch.environment),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        return cls(launch, process)

    @property
    def pid(self) -> int:
        """Process id of tritonserver, and of its group."""
        return self._process.pid

    async def wait(self) -> None:
        """Wait for its end, which nobody asked for: raises Unavailable."""
        code = await self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise Unavailable(f"tritonserver ended with {how}; its log is above")

    async def stop(self, *, graceful: bool) -> None:
        """End it with all its stubs, gracefully if asked, and remove its shared memory."""
        try:
            if graceful and self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), KILL_AFTER_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(asyncio.CancelledError):
                await self._process.wait()
            clean_shm(self._launch.shm_prefix)
