"""Between fork and the program, in the child: `python -I -S launch.py PARENT NICE PROGRAM ARGS`.

A script of its own, not a preexec_fn: forking Python code in a process with gRPC threads deadlocks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Become PROGRAM, killed when the thread that started us ends. Exits 1 when PARENT is gone."""
    parent, nice, program = int(argv[1]), int(argv[2]), argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    # SIGKILL, not SIGTERM: a program that hangs while it drains would outlive us.
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before prctl; no signal would ever come
        sys.exit(1)
    if nice:
        os.nice(nice)
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv)
