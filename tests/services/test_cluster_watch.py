"""Discovery over HTTP against an API server that fails in every way a real one does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from fakes.clock import ManualClock
from fakes.eventually import eventually
from fakes.kube_fake import (
    FakeKube,
    endpoint,
    endpoint_slice,
    fake_kube,
    kubeconfig,
    refusal,
)
from fakes.pki import Authority, Secret
from proa.cluster import KubernetesSlices, load_api
from proa.cluster.api import ApiAccess
from proa.cluster.watch import WatchLimits


@dataclass
class Follower:
    """What a frontend would see. `pauses`: between tries; they end at once."""

    pictures: list[dict[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def sees(self, **pods: str) -> None:
        """Wait until the last picture is these pods with these states."""
        await eventually(lambda: self.pictures[-1:] == [pods])

    async def hears(self, part: str) -> None:
        await eventually(lambda: any(part in text for text in self.errors))


@asynccontextmanager
async def following(access: ApiAccess, *, silent_s: float = 5.0) -> AsyncIterator[Follower]:
    found = Follower()
    source = KubernetesSlices(
        namespace=None,
        instance="r",
        api=access,
        on_error=found.errors.append,
        limits=WatchLimits(silent_s=silent_s),
        pause=found.pause,
    )

    async def follow() -> None:
        async for picture in source.snapshots():
            found.pictures.append({one.name: one.state for one in picture})

    task = asyncio.create_task(follow())
    try:
        yield found
        assert not task.done(), "snapshots() ended"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with fake_kube() as found:
        found.put(endpoint_slice("w-1", endpoint("a", "10.0.0.1", ready=True)))
        yield found


@pytest.fixture
def access(kube: FakeKube, tmp_path: Path) -> ApiAccess:
    return kubeconfig(tmp_path, str(kube.url))


async def watching(kube: FakeKube, count: int = 1) -> None:
    """Wait until `count` watches were begun and one is open."""
    await eventually(lambda: kube.count("watch") >= count and kube.watches)


async def test_pods_come_drain_and_go(kube: FakeKube, access: ApiAccess) -> None:
    kube.put(endpoint_slice("o-1", endpoint("other", "10.0.0.7"), instance="other"))
    async with following(access) as seen:
        await seen.sees(a="ready")
        await watching(kube)
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2", ready=False)))
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2", ready=True)))
        await seen.sees(a="ready", b="ready")
        leaving = {"ready": False, "serving": True, "terminating": True}
        kube.put(endpoint_slice("w-1", endpoint("a", "10.0.0.1", **leaving)))
        await seen.sees(a="draining", b="ready")
        kube.delete("endpointslices", "w-1")
        await seen.sees(b="ready")
    assert seen.errors == []
    assert len(seen.pictures) == 4  # pod b not ready yet changed nothing
    assert kube.count("list") == 1
    verb, asked = kube.seen[1]
    assert verb == "watch"
    assert asked["labelSelector"] == "app.kubernetes.io/instance=r,proa.dev/role"
    assert (asked["allowWatchBookmarks"], asked["timeoutSeconds"]) == ("true", "60")


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(
    kube: FakeKube, access: ApiAccess
) -> None:
    async with following(access) as seen:
        await watching(kube)
        kube.bookmark()
        marked = kube.version
        kube.end_watches()
        await watching(kube, 2)
        assert kube.seen[-1][1]["resourceVersion"] == str(marked)
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2")))
        await seen.sees(a="ready", b="ready")
    assert kube.count("list") == 1
    assert seen.errors == []
    assert max(seen.pauses) <= 0.2


async def test_a_watch_without_a_word_is_followed_by_a_list(
    kube: FakeKube, access: ApiAccess
) -> None:
    async with following(access) as seen:
        for round_ in range(1, 4):
            await watching(kube, round_)
            assert kube.count("list") == round_
            kube.end_watches()
        await watching(kube, 4)
    assert len(seen.pictures) == 1


@pytest.mark.parametrize("in_stream", [False, True])
async def test_410_lists_again(kube: FakeKube, access: ApiAccess, in_stream: bool) -> None:
    kube.gone_in_stream = in_stream
    async with following(access) as seen:
        await watching(kube)
        kube.objects.clear()  # and nobody is told
        kube.put(endpoint_slice("w-9", endpoint("z", "10.0.0.9")))
        await seen.sees(a="ready", z="ready")
        kube.forget()
        kube.end_watches()
        await seen.sees(z="ready")
    assert seen.errors == []  # part of normal life
    assert kube.count("list") == 2


async def test_a_reset_goes_on_where_it_was(kube: FakeKube, access: ApiAccess) -> None:
    async with following(access) as seen:
        await watching(kube)
        kube.bookmark()
        kube.reset_watches()
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2")))
        await seen.sees(a="ready", b="ready")
    assert len(seen.errors) == 1
    assert str(kube.url).rstrip("/") in seen.errors[0]


async def test_a_torn_line_is_not_an_event(kube: FakeKube, access: ApiAccess) -> None:
    async with following(access) as seen:
        await watching(kube)
        kube.bookmark()
        kube.tell(b'{"type": "DELETED", "object": {"metada')
        kube.end_watches()
        await watching(kube, 2)
    assert seen.pictures == [{"a": "ready"}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"<html>proxy</html>\n", "is not JSON"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
        (b"5\n", "is not an object"),
        (b'{"type": "ADDED", "object": {"metadata": {}}}\n', "resourceVersion"),
        (b'{"type": "ERROR", "object": 5}\n', "refused to watch endpointslices"),
    ],
)
async def test_nonsense_in_the_stream_is_told_and_listed_away(
    kube: FakeKube, access: ApiAccess, line: bytes, why: str
) -> None:
    async with following(access) as seen:
        await watching(kube)
        kube.tell(line)
        await seen.hears(why)
        await watching(kube, 2)
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2")))
        await seen.sees(a="ready", b="ready")
    assert kube.count("list") == 2
    assert seen.pictures == [{"a": "ready"}, {"a": "ready", "b": "ready"}]


async def test_a_list_that_is_no_list(kube: FakeKube, access: ApiAccess) -> None:
    kube.instead["list"] = [web.Response(text="<html>"), web.json_response({"items": []})]
    async with following(access) as seen:
        await seen.sees(a="ready")
    assert "is not JSON" in seen.errors[0]
    assert "no resourceVersion" in seen.errors[1]


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_missing_rbac_names_everything_and_keeps_the_picture(
    kube: FakeKube, access: ApiAccess, verb: str
) -> None:
    async with following(access) as seen:
        await watching(kube)
        kube.denied = {(verb, "endpointslices")}
        kube.end_watches()
        await eventually(lambda: len(seen.errors) >= 10)
        told = set(seen.errors)
        kube.denied.clear()
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2")))
        await seen.sees(a="ready", b="ready")
    (text,) = told
    assert text == (
        f"system:serviceaccount:models:proa-frontend may not {verb} endpointslices (API group"
        " discovery.k8s.io) in namespace models: a Role must grant it (the API server"
        f" {str(kube.url).rstrip('/')} says 403)"
    )
    assert seen.pictures == [{"a": "ready"}, {"a": "ready", "b": "ready"}]
    assert 15.0 < max(seen.pauses) <= 30.0


async def test_429_waits_as_long_as_the_server_asks(kube: FakeKube, access: ApiAccess) -> None:
    kube.instead["list"] = [refusal(429, "too many requests", Retry_After="17")]
    async with following(access) as seen:
        await seen.sees(a="ready")
    assert seen.pauses[0] == 17.0
    assert "429 too many requests" in seen.errors[0]


async def test_a_silent_server_is_left(kube: FakeKube, access: ApiAccess) -> None:
    async with following(access, silent_s=0.1) as seen:
        await seen.hears("it said nothing for 0.1 s")
        kube.put(endpoint_slice("w-2", endpoint("b", "10.0.0.2")))
        await seen.sees(a="ready", b="ready")


async def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    async with following(kubeconfig(tmp_path, url)) as seen:
        await seen.hears(f"the API server {url}: Connect")
    assert seen.pictures == []


async def test_a_kubeconfigs_token_is_read_again_after_401(
    kube: FakeKube, access: ApiAccess, tmp_path: Path
) -> None:
    kube.tokens = {"t1"}
    async with following(access) as seen:
        await watching(kube)
        kube.bookmark()
        (tmp_path / "token").write_text("t2", encoding="utf-8")
        kube.tokens = {"t2"}
        kube.end_watches()
        await watching(kube, 3)
        assert seen.errors == []
        kube.tokens = {"t3"}
        kube.end_watches()
        await seen.hears("does not accept the token of KUBECONFIG=")


async def test_a_pod_speaks_tls_and_follows_its_tokens_rotation(tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.issue("kubernetes.default.svc")
    (tmp_path / "server.pem").write_bytes(pair.certificate + pair.key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.pem")
    files = {"ca.crt": authority.certificate, "namespace": b"models"}
    account = Secret(tmp_path / "account")
    async with fake_kube(tls) as kube:
        kube.put(endpoint_slice("w-1", endpoint("a", "10.0.0.1")))
        kube.tokens = {"t1"}
        account.put_files({**files, "token": b"t1"})
        environ = {
            "KUBERNETES_SERVICE_HOST": str(kube.url.host),
            "KUBERNETES_SERVICE_PORT": str(kube.url.port),
        }
        async with following(load_api(environ, account.folder)) as seen:
            await watching(kube)
            account.put_files({**files, "token": b"t2"})
            kube.tokens = {"t2"}
            kube.end_watches()
            await watching(kube, 2)
            assert kube.count("watch") == 2  # no call with the old token
            assert seen.errors == []
            # A CA that did not sign the server: named, and no hang.
            account.put_files({**files, "ca.crt": Authority().certificate, "token": b"t2"})
        async with following(load_api(environ, account.folder)) as seen:
            await seen.hears("CERTIFICATE_VERIFY_FAILED")
            account.put_files({**files, "token": b"t2"})
            await seen.sees(a="ready")


async def test_leaving_while_the_server_is_silent_does_not_hang(
    kube: FakeKube, access: ApiAccess
) -> None:
    clock = ManualClock()
    source = KubernetesSlices(
        namespace=None, instance="r", api=access, on_error=print, pause=clock.pause
    )
    pictures = source.snapshots()
    assert len(await anext(pictures)) == 1
    task = asyncio.ensure_future(anext(pictures))
    await watching(kube)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await eventually(lambda: not kube.watches or kube.bookmark())
