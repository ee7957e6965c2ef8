"""The coordinator on Kubernetes: one at a time by a Lease, its state in a ConfigMap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes.kube_fake import FakeKube, fake_kube, kubeconfig, refusal
from fakes.valkey import free_port
from proa.cluster.api import ApiAccess
from proa.cluster.connection import ApiError
from proa.errors import InvalidRequest, SettingsError, Unavailable
from proa.store.config_map import STATE_BYTES_MAX, ConfigMapState
from proa.store.tenure import Tenure, seat

NAME = "demo-store"


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with fake_kube() as found:
        for kind, version in (("ConfigMap", "v1"), ("Lease", "coordination.k8s.io/v1")):
            found.put({"apiVersion": version, "kind": kind, "metadata": {"name": NAME}})
        yield found


@pytest.fixture
def api(kube: FakeKube, tmp_path: Path) -> ApiAccess:
    return kubeconfig(tmp_path, str(kube.url))


@contextlib.asynccontextmanager
async def state(api: ApiAccess, save_s_max: float = 20.0) -> AsyncIterator[ConfigMapState]:
    found = ConfigMapState(api, NAME, save_s_max=save_s_max)
    yield found
    await asyncio.to_thread(found.close)


async def load(one: ConfigMapState) -> Any:
    """In a thread: it blocks, and the API server is in our loop."""
    return await asyncio.to_thread(one.load)


async def save(one: ConfigMapState, what: dict[str, Any]) -> None:
    await asyncio.to_thread(one.save, what)


async def test_what_was_saved_is_loaded(kube: FakeKube, api: ApiAccess) -> None:
    async with state(api) as one, state(api) as other:
        assert await load(one) is None
        await save(one, {"a": 1})
        await save(one, {"a": 2})
        assert await load(other) == {"a": 2}
    kept = kube.objects["configmaps", NAME]
    assert kept["data"] == {"state.json": '{"a":2}'}


async def test_who_was_deposed_writes_no_more(kube: FakeKube, api: ApiAccess) -> None:
    async with state(api) as old, state(api) as new:
        await load(old)
        await load(new)
        await save(new, {"by": "new"})
        with pytest.raises(Unavailable, match="another coordinator wrote to it"):
            await save(old, {"by": "old"})
    assert json.loads(kube.objects["configmaps", NAME]["data"]["state.json"]) == {"by": "new"}


async def test_a_write_whose_answer_was_lost_is_our_own(kube: FakeKube, api: ApiAccess) -> None:
    async with state(api) as one:
        await load(one)
        kept = json.loads(json.dumps(kube.objects["configmaps", NAME]))
        kube.put({**kept, "data": {"state.json": '{"a":1}'}})  # arrived; its answer did not
        await save(one, {"a": 1})
        await save(one, {"a": 2})
    assert kube.objects["configmaps", NAME]["data"] == {"state.json": '{"a":2}'}


async def test_trouble_that_passes_is_waited_for(kube: FakeKube, api: ApiAccess) -> None:
    async with state(api) as one:
        await load(one)
        kube.instead["update"] = [refusal(503, "busy"), refusal(429, "slower")]
        await save(one, {"a": 1})
    assert kube.objects["configmaps", NAME]["data"] == {"state.json": '{"a":1}'}


async def test_trouble_that_stays_is_named(kube: FakeKube, api: ApiAccess) -> None:
    async with state(api, save_s_max=1.0) as one:
        await load(one)
        kube.denied.add(("update", "configmaps"))
        with pytest.raises(ApiError, match=r"may not update configmaps .* a Role must grant it"):
            await save(one, {"a": 1})
        kube.denied.clear()
        kube.instead["update"] = [refusal(503, "busy")] * 100
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await save(one, {"a": 1})
        with pytest.raises(Unavailable, match=f"above the limit of {STATE_BYTES_MAX}"):
            await save(one, {"a": "x" * STATE_BYTES_MAX})
        kept = json.loads(json.dumps(kube.objects["configmaps", NAME]))
        for text in ("{", "[]"):
            kube.put({**kept, "data": {"state.json": text}})
            with pytest.raises(InvalidRequest, match="not a coordinator's state"):
                await load(one)


async def test_a_tenure_that_is_over_stays_over() -> None:
    held = True
    tenure = Tenure(lambda: held)
    tenure.check()
    held = False
    with pytest.raises(Unavailable, match="Lease was lost"):
        tenure.check()
    held = True
    with pytest.raises(Unavailable, match="Lease was lost"):
        await tenure.watch()


async def test_a_seat_needs_names(tmp_path: Path) -> None:
    for text, holder in (("configmap:", "a"), ("configmap:x", "")):
        with pytest.raises(SettingsError, match="PROA_STORE_HOLDER"):
            async with seat(text, holder, {}, lambda: None):
                pass


class Coordinator:
    """A process, with one shard that nobody serves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.admin_port = name, free_port()
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PROA_")},
            "KUBECONFIG": str(folder / "kubeconfig"), "PROA_STORE_HOLDER": name,
            "PROA_STORE_STATE": f"configmap:{NAME}", "PROA_STORE_K": "1", "PROA_STORE_R": "0",
            "PROA_STORE_SHARDS": f"127.0.0.1:{free_port()}|127.0.0.1:{free_port()}@n",
            "PROA_STORE_HOST": "127.0.0.1", "PROA_STORE_PORT": "0",
            "PROA_STORE_ADMIN_PORT": str(self.admin_port),
        }  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Coordinator:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proa.entry", "store-coordinator",
            env=self._environment, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        assert self._process is not None
        await self._process.communicate()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its log."""
        assert self._process is not None
        assert self._process.stderr is not None
        seen = ""
        async with asyncio.timeout(60):
            while line := await self._process.stderr.readline():
                seen += line.decode()
                if found := re.search(pattern, line.decode()):
                    return found
        raise AssertionError(f"{self.name} ended: {seen}")

    async def is_ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        except OSError:
            return False
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = await reader.readline()
        writer.close()
        return b" 200 " in answer


async def test_a_second_coordinator_waits_alive_and_takes_over(
    kube: FakeKube, api: ApiAccess, tmp_path: Path
) -> None:
    assert api.namespace
    listening = r"listening port=\d+ store=(\w+)"
    async with Coordinator("a", tmp_path) as first:
        store = (await first.says(listening))[1]
        assert kube.objects["leases", NAME]["spec"]["holderIdentity"] == "a"
        async with Coordinator("b", tmp_path) as second:
            async with asyncio.timeout(60):
                while not await second.is_ready():  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.1)
            assert kube.objects["leases", NAME]["spec"]["holderIdentity"] == "a"
            # Frozen for longer than its Lease lasts, it must not go on when it wakes.
            first.signal(signal.SIGSTOP)
            assert (await second.says(listening))[1] == store
            first.signal(signal.SIGCONT)
            await first.says("the coordinator no more")
            assert kube.objects["leases", NAME]["spec"]["holderIdentity"] == "b"
