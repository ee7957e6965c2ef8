"""Probes and actions for Chaos Toolkit, called as its `python` provider does: blocking, by name."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import cluster
from fakes.release import decoder
from proa.errors import InvalidRequest, NotSupported, Unavailable
from proa.local.run_file import FILE_NAME
from proa.local.session import start_ticks
from proa.rpc import Channels
from proa_chaos import toolkit
from proa_chaos.experiment import Choice, Experiment, Fault, Probe
from proa_chaos.hypothesis import Finding
from proa_chaos.inband import InBand
from proa_chaos.journal import journal
from proa_chaos.local.backend import LocalBackend
from proa_chaos.measures import ServingObservations
from proa_chaos.plan import Hit
from proa_chaos.result import Done, Result, Steady
from proa_chaos.selection import ROLE, Target


async def test_probes_measure_a_frontend(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        load = {"seconds": 0.5, "rate_hz": 40.0}
        p99 = await asyncio.to_thread(toolkit.p99_ms, served.address, "digits", **load)
        assert 0.0 < p99 < 1000.0
        assert await asyncio.to_thread(
            toolkit.failed_percent, served.address, "digits", **load
        ) == pytest.approx(0.0)
        with pytest.raises(InvalidRequest, match="'speed' is not a measure"):
            await asyncio.to_thread(toolkit.measure, "speed", served.address, "digits", **load)


def write_run(folder: Path, frontend: str, decoder: str) -> None:
    """The run file of a `proa up` that is this process."""
    one = {"state": "ready", "pid": os.getpid(), "restarts": 0, "admin_address": "127.0.0.1:1"}
    named = {"frontend": frontend, "decoder": decoder}
    run = {
        "version": 1,
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "started_unix": 0.0,
        "address": frontend,
        "admin_address": "127.0.0.1:1",
        "models": ["digits"],
        "processes": [{**one, "name": name, "address": at} for name, at in named.items()],
    }
    (folder / FILE_NAME).write_text(json.dumps(run))


async def test_actions_inject_and_clear(tmp_path: Path) -> None:
    async with cluster(tmp_path, workers=1) as served, decoder() as address:
        write_run(tmp_path, served.address, address)
        where = str(tmp_path)
        target = Target("decoder", "decoder", address, labels={ROLE: "decoder"})
        channels = Channels(message_bytes_max=1 << 20)
        look = InBand(channels, "look", 0)
        said = await asyncio.to_thread(
            toolkit.inject, "decoder", "slow", 30.0, run_dir=where, delay_ms=5
        )
        assert said == "toolkit: slow decoder, 30 s"
        (active,) = await look.active(target)
        assert (active.delay_ms, active.ttl_ms) == (5, 30_000)
        await asyncio.to_thread(toolkit.clear, "decoder", run_dir=where)
        assert await look.active(target) == []
        with pytest.raises(InvalidRequest, match="no process 'worker-9'; there are frontend, dec"):
            await asyncio.to_thread(toolkit.inject, "worker-9", "error", 1.0, run_dir=where)
        await channels.close()


# As `chaos run`: it handles signals, so it wants a main thread.
CHAOS_RUN = """
import json, sys
from chaoslib.experiment import run_experiment
settings = {"runtime": {"rollbacks": {"strategy": "always"}}}
print(json.dumps(run_experiment(json.load(sys.stdin), settings=settings)))
"""


def own_journal() -> dict[str, Any]:
    """Of a run of ours with one fault and one probe."""
    probe = Probe("failed", at_most=0.0)
    fault = Fault("s", "slow", Choice())
    experiment = Experiment("one", "t", "d", (probe,), (fault,))
    result = Result(experiment, "model digits", 0, "local", ServingObservations(1.0), 0.0)
    result.done.append(Done(Hit("0", fault, Target("w0", "w0"), 0.0, 1.0), 0.0, 1.0))
    result.before = Steady(True, (), (Finding(probe, 0.0, met=True, text="0"),), 0.0)
    return journal(result)


def toolkit_experiment(frontend: str, run_dir: Path) -> dict[str, Any]:
    """A Chaos Toolkit experiment of our probes and actions alone."""

    def python(func: str, **arguments: Any) -> dict[str, Any]:
        provider = {"type": "python", "module": "proa_chaos.toolkit", "func": func}
        return {"name": func, "provider": {**provider, "arguments": arguments}}

    load = {"address": frontend, "model": "digits", "seconds": 0.5, "rate_hz": 40.0}
    none = {"type": "range", "range": [0, 0]}
    where = {"target": "decoder", "run_dir": str(run_dir)}
    slow = python("inject", **where, action="slow", seconds=30.0, delay_ms=5)
    return {
        "version": "1.0.0",
        "title": "A slow decoder costs no answer",
        "description": "d",
        "steady-state-hypothesis": {
            "title": "no request fails",
            "probes": [{"type": "probe", "tolerance": none, **python("failed_percent", **load)}],
        },
        "method": [{"type": "action", **slow}],
        "rollbacks": [{"type": "action", **python("clear", **where)}],
    }


async def test_chaos_toolkit_itself_runs_them(tmp_path: Path) -> None:
    pytest.importorskip("chaoslib", reason="chaostoolkit-lib is not installed")
    async with cluster(tmp_path, workers=1) as served, decoder() as address:
        write_run(tmp_path, served.address, address)
        given = json.dumps(toolkit_experiment(served.address, tmp_path)).encode()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHAOS_RUN,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(given)
        found = json.loads(out)
        assert (found["status"], found["deviated"]) == ("completed", False), found
        for when in ("before", "after"):
            (probe,) = found["steady_states"][when]["probes"]
            assert (probe["status"], probe["output"]) == ("succeeded", 0.0)
        assert [one["output"] for one in found["run"]] == ["toolkit: slow decoder, 30 s"]
        assert [one["status"] for one in found["rollbacks"]] == ["succeeded"]
        # Who reads its journals can read ours.
        ours = own_journal()
        assert found.keys() <= ours.keys()
        assert found["run"][0].keys() <= ours["run"][0].keys()
        (one,) = found["steady_states"]["before"]["probes"]
        assert one.keys() <= ours["steady_states"]["before"]["probes"][0].keys()


async def test_on_one_machine_there_is_no_chaos_mesh(tmp_path: Path) -> None:
    write_run(tmp_path, "127.0.0.1:1", "127.0.0.1:2")
    backend = LocalBackend(tmp_path, prefix="x", seed=0)
    target = Target("decoder", "decoder", labels={ROLE: "decoder"})
    slow = Fault("s", "slow", Choice(), backend="chaos-mesh")
    with pytest.raises(NotSupported, match="slow decoder: backend chaos-mesh is for clusters"):
        await backend.prepare([Hit("0", slow, target, 0.0, 1.0)])
    await backend.close()


def test_arguments_are_plain() -> None:
    """They come from JSON."""
    for name in toolkit.__all__:
        for argument in inspect.signature(getattr(toolkit, name)).parameters.values():
            assert argument.annotation in {"str", "str | None", "float", "int", "bool", "Any"}
            if argument.default is not argument.empty:
                json.dumps(argument.default)


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'kill' is not one of bitflip, drop"):
        toolkit.inject("worker-0", "kill", 1.0)
    with pytest.raises(InvalidRequest, match="seconds=0"):
        toolkit.inject("worker-0", "slow", 0.0)
    with pytest.raises(Unavailable):
        toolkit.inject("worker-0", "slow", 1.0, run_dir=str(tmp_path), delay_ms=5)
