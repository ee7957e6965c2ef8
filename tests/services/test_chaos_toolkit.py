"""Probes and actions for Chaos Toolkit, called as its `python` provider does: blocking, by name."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from pathlib import Path

import pytest

from fakes.cluster import cluster
from fakes.release import decoder
from proa.errors import InvalidRequest, Unavailable
from proa.local.run_file import FILE_NAME
from proa.local.session import start_ticks
from proa.rpc import Channels
from proa_chaos import toolkit
from proa_chaos.inband import InBand
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
