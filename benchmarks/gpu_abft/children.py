"""Work in processes of its own: compiling in parallel, and sections that may end their process.

An illegal access of a kernel makes the GPU useless to a process, whatever it does next. So the
script's first process measures nothing. It starts one that works through the sections, notes how
that ended, and starts another for what is left.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence

from gpu_abft.record import Record

LOST = 3  # exit code: `record.Lost`
PIECEWISE = ("networks", "rest")  # go on after the shape at which a process ended
POLL_S = 0.5
STUCK_S = 120.0  # without a sign of life: a kernel that never ends, or very slow compiling
GRACE_S = 15.0  # after the end of the time: to finish what is being measured
PROCESSES_MAX = 20

Start = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


def together(commands: Sequence[Sequence[str]], seconds: float, record: Record) -> list[int | None]:
    """Exit codes of processes that share one deadline, None for those that it ended. All but 0 are
    errors in the record."""
    end_s = time.monotonic() + seconds
    children = [subprocess.Popen(command) for command in commands]
    codes: list[int | None] = []
    for at, child in enumerate(children):
        try:
            codes.append(child.wait(timeout=max(0.05, end_s - time.monotonic())))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            codes.append(None)
        if codes[-1] != 0:
            how = f"ended after {seconds:.0f} s" if codes[-1] is None else f"exit code {codes[-1]}"
            record.error("warm", f"process {at} of {len(children)}: {how}")
    return codes


def supervise(sections: Sequence[str], start: Start, record: Record) -> None:
    """Works through `sections` in a process that `start` starts, in another where one ends early.

    What a process was at when it ended is an error: of PIECEWISE that shape is lost, of the others
    the rest of the section. The record is that of the last process.
    """
    left = list(sections)
    for _ in range(PROCESSES_MAX):
        record.save()
        record.mark.unlink(missing_ok=True)
        how = _watched(start(left), record)
        record.load()
        if how is None:
            return
        section, what = _mark(record, left[0])
        if how != f"exit code {LOST}" or not _told(record, section):
            record.error(what, f"the process of section {section}: {how}", section)
        at = left.index(section) if section in left else 0
        if section in PIECEWISE and what != section:
            shapes = record.found.setdefault("shapes", {})
            if shapes.get(what, {}).get("run") != record.run:
                shapes[what] = {"run": record.run, "failed": how}
            left = left[at:]
        else:
            left = left[at + 1 :]
        if not left or record.left_s <= 0:
            break
    for name in left:
        text = "not measured: no time was left, or too many processes ended early"
        record.error(name, text, name)


def _told(record: Record, section: str) -> bool:
    return any(one.get("section") == section for one in record.found["errors"])


def _mark(record: Record, first: str) -> tuple[str, str]:
    """Section and piece that were being measured."""
    try:
        found = json.loads(record.mark.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return first, first  # it ended before it began
    return found["section"] or first, found["what"]


def _watched(child: subprocess.Popen[bytes], record: Record) -> str | None:
    """None where it ended well; else how."""
    began = time.time()
    while True:
        try:
            code = child.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            return None if code == 0 else f"exit code {code}"
        seen = record.mark.stat().st_mtime if record.mark.exists() else began
        stuck = time.time() - max(seen, began) > STUCK_S
        if stuck or record.left_s < -GRACE_S:
            child.kill()
            child.wait()
            return f"nothing happened for {STUCK_S:.0f} s" if stuck else "the time was over"
