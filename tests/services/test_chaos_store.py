"""What a run on a store asks its coordinator, and which processes of a machine it hits."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest

from fakes.eventually import eventually, eventually_sync
from proa import rpc
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.cli.main import main
from proa.errors import Unavailable
from proa.local.run_file import FILE_NAME
from proa.local.session import start_ticks
from proa.rpc import servicer_errors
from proa_chaos.experiment import Choice, Fault, Parameters
from proa_chaos.local.store import LocalStoreBackend
from proa_chaos.plan import Hit
from proa_chaos.store import coordinator as coordinators
from proa_chaos.store.coordinator import Coordinator
from proa_chaos.store.measures import Scrubbed

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


class Said(store_pb2_grpc.EmbeddingStoreServicer):
    """Says what a test wants it to."""

    def __init__(self):
        self.recover, self.scrub, self.status = [], [], []

    @servicer_errors
    async def Recover(self, request, context):
        await self._say(self.recover, context)

    @servicer_errors
    async def Scrub(self, request, context):
        await self._say(self.scrub, context)

    @servicer_errors
    async def Status(self, request, context):
        await self._say(self.status, context)

    async def _say(self, messages, context):
        for one in messages:
            if isinstance(one, Exception):
                raise one
            await context.write(one)


@pytest.fixture
async def said():
    server = grpc.aio.server(options=rpc.server_options(1 << 20))
    found = Said()
    store_pb2_grpc.add_EmbeddingStoreServicer_to_server(found, server)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield found
    await server.stop(0)


def progress(**values):
    return store_pb2.RecoverProgress(**values)


async def test_a_store_is_waited_for_until_its_coordinator_is_content(said):
    asked = Coordinator(said.address)
    said.recover = [progress(rows_pending=3), progress(done=True)]
    assert await asked.waiting_for() == ([], 0)
    # Nothing brings lost rows back: they are said, and not waited for.
    said.recover = [progress(done=True, rows_lost=7, parity_pending=2)]
    assert await asked.waiting_for() == ([], 7)
    said.recover = [Unavailable("starting")]
    (line,), _ = await asked.waiting_for()
    assert "starting" in line
    (line,), _ = await Coordinator("127.0.0.1:1").waiting_for()
    assert "coordinator 127.0.0.1:1" in line


async def test_what_is_missing_is_said_when_it_takes_long(said, monkeypatch):
    monkeypatch.setattr(coordinators, "RECOVER_S_MAX", 0.3)
    said.recover = itertools.repeat(progress(rows_pending=3, shards_away=1, parity_pending=2))
    lines, _ = await Coordinator(said.address).waiting_for()
    assert lines == [
        "1 shards do not serve",
        "3 rows are to be decoded",
        "2 parity blocks are to be collected",
    ]


async def test_what_a_scrub_finds_has_a_name(said):
    row = store_pb2.ScrubFinding(
        kind="crc", shard=2, table="t", stripe=4, position=1, rows=[5], ids=[31, 35]
    )
    block = store_pb2.ScrubFinding(
        kind="parity", shard=1, table="t", stripe=4, position=2, rows=range(12)
    )
    said.scrub = [
        store_pb2.ScrubProgress(findings=[row]),
        store_pb2.ScrubProgress(findings=[block]),
        store_pb2.ScrubProgress(rows_bad=2, rows_repaired=1, stripes_bad=1, done=True),
    ]
    notes, eight = [], "0, 1, 2, 3, 4, 5, 6, 7"
    assert await Coordinator(said.address).scrub(notes) == Scrubbed(2, 1, 1)
    assert notes == [
        "scrub: crc: shard 2, table 't', stripe 4, position 1: ids 31, 35",
        f"scrub: parity: shard 1, table 't', stripe 4, position 2: parity rows {eight}, ...",
    ]
    said.scrub[-1] = store_pb2.ScrubProgress(shards_failed=[0, 3])
    with pytest.raises(Unavailable, match="did not read all rows of shards 0, 3"):
        await Coordinator(said.address).scrub(notes)


def report(*shards, state="open"):
    """Of each shard: rows decoded, and pushes."""
    found = [
        store_pb2.ShardReport(shard=i, state=state, rows_decoded=decoded, pushes=pushes)
        for i, (decoded, pushes) in enumerate(shards)
    ]
    return store_pb2.StoreReport(k=2, r=1, shards=found)


async def test_decoded_rows_are_counted_through_restarts_of_agents(said, monkeypatch):
    monkeypatch.setattr(coordinators, "AGAIN_S", 0.01)
    counts = []
    said.status = [
        report((5, 50), (9, 50)),  # what there was
        report((8, 60), (9, 60)),  # 3 more
        report((2, 1), (9, 70)),  # the first agent was started again, and decoded 2
        report((0, 0), (0, 0), state="down"),
        report((2, 8), (9, 3)),  # the second one was, and has decoded as many as before
        Unavailable("killed"),
    ]
    async with Coordinator(said.address).decoded(counts.append):
        await eventually(lambda: len(counts) >= 8)
    assert sum(counts[:8]) == 3 + 2 + 9


# --- this machine


@pytest.fixture
def store(tmp_path):
    """run.json of a store of two shards, whose processes are sleepers."""
    names = ["coordinator", "valkey-0", "valkey-1", "agent-0", "agent-1"]
    with contextlib.ExitStack() as stack:
        victims = {
            name: stack.enter_context(subprocess.Popen(SLEEPER, start_new_session=True))
            for name in names
        }
        for victim in victims.values():
            stack.callback(victim.kill)
        write(tmp_path, victims)
        yield tmp_path, victims


def write(folder, victims, state="ready"):
    common = {"state": state, "restarts": 0, "admin_address": "127.0.0.1:1"}
    run = {
        "version": 1, "pid": os.getpid(), "start_ticks": start_ticks(os.getpid()),
        "started_unix": 0.0, "address": "127.0.0.1:9", "admin_address": "127.0.0.1:1",
        "models": [],
        "processes": [
            {**common, "name": name, "pid": victim.pid, "address": f"127.0.0.1:{1000 + number}"}
            for number, (name, victim) in enumerate(victims.items())
        ],
    }  # fmt: skip
    (folder / FILE_NAME).write_text(json.dumps(run))


def shards():
    return store_pb2.StoreReport(
        shards=[store_pb2.ShardReport(shard=i, domain=f"rack-{i}") for i in range(2)]
    )


async def test_targets_are_shards_their_processes_and_the_coordinator(store):
    folder, victims = store
    place = LocalStoreBackend(folder, prefix="t", seed=0)
    assert place.address == "127.0.0.1:9"
    found = [(t.name, t.role, t.domain, t.address) for t in await place.targets(shards())]
    assert found == [
        ("shard-0", "shard", "rack-0", "127.0.0.1:1003"),
        ("agent-0", "store-agent", "rack-0", "127.0.0.1:1003"),
        ("valkey-0", "store-server", "rack-0", ""),
        ("shard-1", "shard", "rack-1", "127.0.0.1:1004"),
        ("agent-1", "store-agent", "rack-1", "127.0.0.1:1004"),
        ("valkey-1", "store-server", "rack-1", ""),
        ("coordinator", "store-coordinator", "coordinator", "127.0.0.1:9"),
    ]
    assert await place.waiting_for() == []
    write(folder, victims, state="starting")
    assert "agent-1 is starting" in await place.waiting_for()
    await place.close()


def stopped(victim) -> bool:
    return Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def frozen(victims):
    return {name for name, victim in victims.items() if stopped(victim)}


def killed(victims):
    return {name for name, victim in victims.items() if victim.poll() is not None}


@pytest.mark.parametrize(
    ("action", "target", "what", "dead"),
    [
        ("kill-shard", "shard-1", "agent", {"agent-1"}),
        ("kill-shard", "shard-1", "server", {"valkey-1"}),
        ("kill-shard", "shard-0", "both", {"agent-0", "valkey-0"}),
        ("kill", "valkey-0", "both", {"valkey-0"}),
        ("kill", "coordinator", "both", {"coordinator"}),
    ],
)
async def test_who_is_killed(store, action, target, what, dead):
    folder, victims = store
    place = LocalStoreBackend(folder, prefix="t", seed=0)
    (chosen,) = [t for t in await place.targets(shards()) if t.name == target]
    fault = Fault("f", action, Choice(), duration_s=0.0, parameters=Parameters(what=what))
    hit = Hit("0", fault, chosen, 0.0, 0.0)
    await place.prepare([hit])
    assert killed(victims) == set()
    await place.inject(hit, 0.0)
    eventually_sync(lambda: killed(victims) == dead)
    await place.end(hit)
    assert killed(victims) == dead
    await place.close()


async def test_a_frozen_shard_is_both_its_processes_and_a_drained_one_nothing_more(store):
    folder, victims = store
    place = LocalStoreBackend(folder, prefix="t", seed=0)
    targets = {t.name: t for t in await place.targets(shards())}
    freeze = Fault("f", "pause", Choice(), parameters=Parameters(how="process"))
    hit = Hit("0", freeze, targets["shard-0"], 0.0, 60.0)
    # The shard's processes are drained as what they are; the shard itself is none.
    drain = Hit("1", Fault("d", "drain", Choice()), targets["shard-1"], 0.0, 60.0)
    await place.prepare([hit, drain])
    await place.inject(hit, 60.0)
    await place.inject(drain, 60.0)
    eventually_sync(lambda: frozen(victims) == {"agent-0", "valkey-0"})
    await place.end(hit)
    await place.end(drain)
    eventually_sync(lambda: frozen(victims) == set())
    assert killed(victims) == set()
    await place.close()


# --- the command

TRIAL = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {name: trial}
spec:
  title: t
  description: d
  workload: {store: {}}
  hypothesis: [{measure: failed, atMost: 0}]
"""


def chaos(capsys, folder, *argv):
    (folder / "trial.yaml").write_text(TRIAL)
    code = main(["chaos", "run", str(folder / "trial.yaml"), "--local", *argv])
    return code, capsys.readouterr().err


def test_where_no_store_runs_the_command_says_how_to_start_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = chaos(capsys, tmp_path)
    assert code == 1
    assert ".proa-store/run.json: nothing runs here; start it with `proa store up --faults`" in said
    with subprocess.Popen(SLEEPER) as victim:
        write(tmp_path, {"frontend": victim})
        code, said = chaos(capsys, tmp_path, "--run-dir", str(tmp_path))
        victim.kill()
    assert code == 1
    assert "no store runs here; start one with `proa store up --faults`" in said


@pytest.mark.parametrize("flags", [("--rate", "3"), ("--parallel",)], ids=" ".join)
def test_what_is_of_models_is_wrong_use(capsys, tmp_path, flags):
    code, said = chaos(capsys, tmp_path, *flags)
    assert code == 2
    assert f"{flags[0]}: not for an experiment on a store" in said
