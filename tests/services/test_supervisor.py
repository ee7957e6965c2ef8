"""The supervisor against real processes: tiny services with a /readyz, and a journal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.eventually import eventually
from proa.errors import InvalidRequest, Unavailable
from proa.local.ports import Ports
from proa.local.priority import NICE_LOW, Priority
from proa.local.processes import Limits, ProcessSpec, State
from proa.local.session import Family, start_ticks
from proa.local.supervisor import Supervisor

SERVICE = """
import http.server, os, pathlib, signal, subprocess, sys, threading, time

name = os.environ["NAME"]
folder = pathlib.Path(os.environ["FOLDER"])
journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
note = lambda what: os.write(journal, f"{name} {what}\\n".encode())
note(f"start {os.environ.get('MARK', '')}")
print("hello from", name, flush=True)
if "EXIT" in os.environ:
    print("cannot go on", flush=True)
    sys.exit(int(os.environ["EXIT"]))
if "GRANDCHILD" in os.environ:
    subprocess.Popen(["sleep", "600"], start_new_session=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = self.path == "/livez" or not (folder / f"{name}.unready").exists()
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"ok" if ready else b"the canary failed")

    def log_message(self, *args):
        pass

def leave(*_):
    if "STUBBORN" in os.environ:
        note("stays")
        return
    note("term")
    os._exit(0)

signal.signal(signal.SIGTERM, leave)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["ADMIN_PORT"])), Handler)
server.serve_forever()
"""
FAST = Limits(
    start_s_max=20.0, backoff_s_min=0.02, backoff_s_max=0.05, starting_probe_s=0.02,
    probe_s=0.05, probe_timeout_s=0.3, probe_failures_max=2,
)  # fmt: skip


class World:
    """A folder, the services in it, and what they and the supervisor said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "service.py"
        self.script.write_text(SERVICE)
        self.ports = Ports()
        self.lines: list[tuple[str, str]] = []

    def spec(self, name: str, *, stage: int = 0, grace_s: float = 5.0, **env: str) -> ProcessSpec:
        port = self.ports.free()
        return ProcessSpec(
            name=name,
            argv=(sys.executable, "-S", str(self.script)),
            env={"NAME": name, "FOLDER": str(self.folder), "ADMIN_PORT": str(port), **env},
            admin_port=port,
            stage=stage,
            grace_s=grace_s,
            clean=(self.folder / f"{name}.left").touch,
        )

    def unready(self, name: str, *, unready: bool = True) -> None:
        path = self.folder / f"{name}.unready"
        path.touch() if unready else path.unlink()

    def journal(self) -> list[str]:
        path = self.folder / "journal"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []

    def sink(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    @asynccontextmanager
    async def running(
        self, *specs: ProcessSpec, limits: Limits = FAST, priority: Priority | None = None
    ) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(specs, sink=self.sink, limits=limits, priority=priority)
        async with supervisor:
            yield supervisor


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def family_of(pid: int) -> set[int]:
    return {member.pid for member in Family(pid).members()}


def living(pids: set[int]) -> set[int]:
    return {pid for pid in pids if start_ticks(pid) is not None}


def pid_of(supervisor: Supervisor, name: str) -> int | None:
    return next(status.pid for status in supervisor.status() if status.name == name)


def state_of(supervisor: Supervisor, name: str) -> State:
    return next(status.state for status in supervisor.status() if status.name == name)


def is_back(supervisor: Supervisor, name: str, old: int | None) -> Callable[[], bool]:
    def check() -> bool:
        ready = state_of(supervisor, name) is State.READY
        return ready and pid_of(supervisor, name) not in (None, old)

    return check


async def test_all_become_ready_and_their_output_is_told_apart(world: World) -> None:
    async with world.running(world.spec("a"), world.spec("b")) as supervisor:
        await supervisor.ready()
        assert {status.state for status in supervisor.status()} == {State.READY}
        await eventually(lambda: set(world.lines) >= {("a", "hello from a"), ("b", "hello from b")})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_what_is_killed_or_frozen_comes_back(world: World, number: signal.Signals) -> None:
    async with world.running(world.spec("a"), world.spec("b")) as supervisor:
        await supervisor.ready()
        old, other = pid_of(supervisor, "a"), pid_of(supervisor, "b")
        supervisor.kill("a", number)
        await eventually(is_back(supervisor, "a", old))
        assert pid_of(supervisor, "b") == other
        assert [s.restarts for s in supervisor.status()] == [1, 0]


async def test_a_held_process_stays_down_until_released(world: World) -> None:
    async with world.running(world.spec("a")) as supervisor:
        await supervisor.ready()
        old = pid_of(supervisor, "a")
        supervisor.hold("a")
        assert state_of(supervisor, "a") is State.READY
        supervisor.kill("a")
        await supervisor.down("a")
        assert world.journal() == ["a start"]
        assert pid_of(supervisor, "a") is None
        supervisor.release("a")
        await supervisor.ready("a")
        assert is_back(supervisor, "a", old)()


@pytest.mark.parametrize(
    ("healthy_s_min", "expected"), [(1e9, ["0.02", "0.04", "0.05", "0.05"]), (0.0, ["0.02"] * 4)]
)
async def test_backoff_doubles_up_to_its_limit_unless_the_process_was_healthy(
    world: World, healthy_s_min: float, expected: list[str]
) -> None:
    limits = replace(FAST, healthy_s_min=healthy_s_min)
    async with world.running(world.spec("a"), limits=limits) as supervisor:
        for _ in expected:
            await supervisor.ready()
            old = pid_of(supervisor, "a")
            supervisor.kill("a")
            await eventually(is_back(supervisor, "a", old))
    said = [line for _, line in world.lines if line.startswith("[killed")]
    assert said == [f"[killed by SIGKILL; starts again in {delay} s]" for delay in expected]


async def test_stages_drain_in_order_each_after_the_one_before(world: World) -> None:
    specs = [world.spec("worker", stage=2), world.spec("coder", stage=1), world.spec("front")]
    async with world.running(*specs) as supervisor:
        await supervisor.ready()
    terms = [line for line in world.journal() if line.endswith("term")]
    assert terms == ["front term", "coder term", "worker term"]
    assert {status.state for status in supervisor.status()} == {State.STOPPED}


async def test_nothing_is_left_of_a_process_that_ignores_sigterm(world: World) -> None:
    spec = world.spec("a", grace_s=0.1, GRANDCHILD="1", STUBBORN="1")
    async with world.running(spec) as supervisor:
        await supervisor.ready()
        pid = pid_of(supervisor, "a")
        assert pid is not None
        family = family_of(pid)
        assert len(family) == 2
    assert not living(family)
    assert (world.folder / "a.left").exists()


async def test_what_a_killed_process_started_is_gone_before_it_is_restarted(world: World) -> None:
    async with world.running(world.spec("a", GRANDCHILD="1")) as supervisor:
        await supervisor.ready()
        old = pid_of(supervisor, "a")
        assert old is not None
        family = family_of(old)
        assert len(family) == 2
        supervisor.kill("a", tree=False)
        await eventually(is_back(supervisor, "a", old))
        assert not living(family)
        assert (world.folder / "a.left").exists()


async def test_kill_all_ends_a_slow_drain(world: World) -> None:
    async with world.running(world.spec("a", grace_s=60.0, STUBBORN="1")) as supervisor:
        await supervisor.ready()
        stopping = asyncio.create_task(supervisor.stop())
        await eventually(lambda: "a stays" in world.journal())
        supervisor.kill_all()
        await asyncio.wait_for(stopping, 10)


async def test_a_process_that_exits_at_every_start_is_an_error_with_its_last_lines(
    world: World,
) -> None:
    async with world.running(world.spec("good"), world.spec("bad", EXIT="7")) as supervisor:
        with pytest.raises(Unavailable, match=r"(?s)bad: exited with status 7.*cannot go on"):
            await supervisor.ready()
        assert state_of(supervisor, "bad") is State.FAILED
    assert world.journal().count("bad start") == FAST.start_attempts_max


async def test_wrong_settings_are_not_tried_again(world: World) -> None:
    async with world.running(world.spec("bad", EXIT="2")) as supervisor:
        with pytest.raises(Unavailable, match="bad: exited with status 2"):
            await supervisor.ready()
    assert world.journal() == ["bad start"]


async def test_a_process_that_never_becomes_ready_is_an_error_that_says_why(world: World) -> None:
    world.unready("slow")
    limits = Limits(start_s_max=1.5, starting_probe_s=0.02)
    async with world.running(world.spec("slow"), limits=limits) as supervisor:
        with pytest.raises(
            Unavailable, match=r"(?s)slow: not ready within 1.5 s; .*canary failed.*hello from slow"
        ):
            await supervisor.ready()


async def test_unready_is_shown_but_not_restarted(world: World) -> None:
    async with world.running(world.spec("a")) as supervisor:
        await supervisor.ready()
        world.unready("a")
        await eventually(lambda: state_of(supervisor, "a") is State.UNREADY)
        assert supervisor.status()[0].reason == "the canary failed"
        world.unready("a", unready=False)
        await eventually(lambda: state_of(supervisor, "a") is State.READY)
        assert supervisor.status()[0].restarts == 0


async def test_restart_drains_and_starts_with_the_new_environment(world: World) -> None:
    async with world.running(world.spec("frontend", MARK="one")) as supervisor:
        await supervisor.ready()
        await supervisor.restart_frontend({"MARK": "two"})
        assert state_of(supervisor, "frontend") is State.READY
        await supervisor.restart_frontend({})
        assert state_of(supervisor, "frontend") is State.READY
    marks = [line for line in world.journal() if "start" in line]
    assert marks == ["frontend start one", "frontend start two", "frontend start two"]


async def test_a_restart_with_an_environment_that_fails_raises(world: World) -> None:
    async with world.running(world.spec("frontend"), world.spec("b")) as supervisor:
        await supervisor.ready()
        with pytest.raises(Unavailable, match="frontend: exited with status 2"):
            await supervisor.restart_frontend({"EXIT": "2"})


async def test_unknown_names_are_refused_with_the_known_ones(world: World) -> None:
    async with world.running(world.spec("a")) as supervisor:
        with pytest.raises(InvalidRequest, match="no process 'worker-9'; there are a"):
            supervisor.hold("worker-9")


@pytest.mark.parametrize("low_priority_s_max", [30.0, 0.0])
async def test_a_restart_has_low_priority_until_ready_or_too_long(
    world: World, low_priority_s_max: float
) -> None:
    """With all it starts, in whatever session."""
    priority = Priority.detect()
    if not (priority.nice or priority.autogroup):
        pytest.skip("this machine lets nobody lower and raise a priority")
    spec = world.spec("a", GRANDCHILD="1")
    limits = replace(FAST, low_priority_s_max=low_priority_s_max)
    async with world.running(spec, limits=limits, priority=priority) as supervisor:
        await supervisor.ready()
        first = pid_of(supervisor, "a")
        assert first is not None
        assert niceness(first, priority) == 0, "the first start takes nothing from anybody"
        world.unready("a")
        supervisor.kill("a")
        await eventually(lambda: world.journal() == ["a start"] * 2)
        pid = pid_of(supervisor, "a")
        assert pid is not None
        await eventually(lambda: len(family_of(pid)) == 2)
        family = family_of(pid)
        expected = NICE_LOW if low_priority_s_max else 0
        await eventually(lambda: {niceness(p, priority) for p in family} == {expected})
        world.unready("a", unready=False)
        await supervisor.ready()
        await eventually(lambda: {niceness(p, priority) for p in family} == {0})
        await eventually(lambda: {os.getpriority(os.PRIO_PROCESS, p) for p in family} == {0})


def niceness(pid: int, priority: Priority) -> int:
    if priority.autogroup:
        return int(Path(f"/proc/{pid}/autogroup").read_text().rpartition("nice")[2])
    return os.getpriority(os.PRIO_PROCESS, pid)


SERVING = """
import asyncio, sys
from contextlib import asynccontextmanager
from proa.local.embedded import Running, run_until_signal
from proa.local.processes import ProcessSpec
from proa.local.supervisor import Supervisor
from proa.local.topology import Topology

folder, port, *env = sys.argv[1:]
env = {"NAME": "a", "FOLDER": folder, "ADMIN_PORT": port} | dict(e.split("=") for e in env)
spec = ProcessSpec("a", (sys.executable, "-S", folder + "/service.py"), env, int(port), grace_s=60)
topology = Topology("", "", (), (spec,), ())

@asynccontextmanager
async def embedded():
    async with Supervisor(topology.processes) as supervisor:
        announce.supervisor = supervisor
        yield Running(topology, supervisor)

def announce(topology):
    print(announce.supervisor.status()[0].pid, flush=True)

asyncio.run(run_until_signal(embedded(), announce))
"""


@asynccontextmanager
async def serving(world: World, *env: str) -> AsyncIterator[tuple[Process, int]]:
    """A process that serves one service until a signal comes, and the service's pid."""
    port = world.ports.free()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVING, str(world.folder), str(port), *env,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    child = int(await process.stdout.readline())
    assert living({child})
    try:
        yield process, child
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_processes_die_with_a_supervisor_that_is_killed(world: World) -> None:
    async with serving(world) as (supervisor, child):
        supervisor.kill()
        await supervisor.wait()
        await eventually(lambda: not living({child}))
    assert world.journal() == ["a start"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(world: World, number: signal.Signals) -> None:
    async with serving(world) as (supervisor, child):
        supervisor.send_signal(number)
        assert await supervisor.wait() == 0
        assert not living({child})
    assert world.journal() == ["a start", "a term"]


async def test_the_second_signal_kills(world: World) -> None:
    async with serving(world, "STUBBORN=1") as (supervisor, child):
        supervisor.send_signal(signal.SIGINT)
        await eventually(lambda: "a stays" in world.journal())
        supervisor.send_signal(signal.SIGINT)
        assert await supervisor.wait() == 0
        assert not living({child})
