"""Rows of many tables in one exchange with each shard; the same while a shard is dead."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fakes.real_store import started, until
from proa.errors import InvalidRequest
from proa.local.store import StoreOptions, agent_name, server_name
from proa.store.client import StoreClient
from proa.store.optimisers import SGD, RowWiseAdagrad
from proa.store.tables import Table

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio]

TABLES = [
    Table("a", 900, 8, SGD(0.5)),
    Table("b", 64, 4, RowWiseAdagrad(0.1)),
    Table("c", 1, 3, SGD(1.0)),
]


def _executed(watch):
    """Transactions of every server so far."""
    found = []
    for shard in range(4):
        with watch.server(shard) as server:
            found.append(server.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])
    return np.array(found)


async def test_rows_of_many_tables_come_together(tmp_path_factory):
    options = StoreOptions(run_dir=tmp_path_factory.mktemp("sp"), port=0, admin_port=0)
    draw = np.random.default_rng(4)
    async with started(options) as watch, StoreClient(watch.address) as client:
        for table in TABLES:
            await client.create_table(table)
        everything = {t.name: draw.permutation(t.rows) for t in TABLES}
        await client.push(
            {
                t.name: (np.arange(t.rows), draw.standard_normal((t.rows, t.dim), np.float32))
                for t in TABLES
            }
        )
        await client.flush()
        one_by_one = {name: await client.pull(name, ids) for name, ids in everything.items()}
        # Agents write nothing now; their first snapshots for the parity may be under way.
        await until(lambda: _quiet(watch))
        before = _executed(watch)
        together = await client.pull_many(everything)
        assert (_executed(watch) - before == 1).all()
        assert list(together) == list(everything)
        for name, rows in one_by_one.items():
            assert together[name].tobytes() == rows.tobytes()
        some = {"b": np.array([], np.int64), "a": np.array([3])}
        few = await client.pull_many(some)
        assert few["b"].shape == (0, 4)
        assert few["a"].tobytes() == one_by_one["a"][everything["a"] == 3].tobytes()
        assert await client.pull_many({}) == {}
        with pytest.raises(InvalidRequest, match="table 'b': id 64"):
            await client.pull_many({"a": np.array([0]), "b": np.array([64])})
        for name in (server_name(1), agent_name(1)):
            watch.supervisor.kill(name)
        decoded = await client.pull_many(everything)
        assert {n: rows.tobytes() for n, rows in decoded.items()} == {
            n: rows.tobytes() for n, rows in one_by_one.items()
        }


async def _quiet(watch):
    before = _executed(watch)
    await asyncio.sleep(0.2)
    return (_executed(watch) == before).all()
