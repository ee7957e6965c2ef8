"""Tokens at a frontend over real gRPC: who may call what, and what the others are told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2

from fakes.cluster import Frontend, frontend, request, until, worker_list, write_spec
from fakes.triton_fake import FakeTriton, images
from proa import rpc
from proa.api.v1 import frontend_pb2, frontend_pb2_grpc
from proa.cli.main import main
from proa.client import (
    AsyncClient,
    Client,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    UnknownModel,
)
from proa.frontend.auth import WRONG_MAX

TOKENS = {"team-a": "secret-a", "team-b": "secret-b"}
MORE = {"team-a": ["models: [digits]"], "team-b": []}


def write_tokens(path: Path, more: dict[str, list[str]] = MORE) -> Path:
    """The tokens file; `more`: further lines of a tenant."""
    lines = ["tokens:"]
    for name, keys in more.items():
        digest = hashlib.sha256(TOKENS[name].encode()).hexdigest()
        lines += [f"- name: {name}", f"  sha256: {digest}", *(f"  {key}" for key in keys)]
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.asynccontextmanager
async def guarded(folder: Path, more: dict[str, list[str]] = MORE) -> AsyncIterator[Frontend]:
    """A frontend with the models `digits` and `other`, and tokens."""
    async with (
        FakeTriton() as worker,
        FakeTriton(model="other") as another,
        frontend(
            specs=f"{write_spec(folder)},{write_spec(folder, name='other')}",
            workers=f"{worker_list('digits', [worker])};{worker_list('other', [another])}",
            tokens=write_tokens(folder / "tokens.yaml", more),
        ) as served,
    ):
        await until(lambda: is_ready(served))
        yield served


async def is_ready(served: Frontend) -> bool:
    return (await served.page("/readyz"))[0] == 200


def client(served: Frontend, token: str | None = "secret-a") -> AsyncClient:
    return AsyncClient(served.address, token=token, deadline_s=10.0)


async def refusals(served: Frontend, reason: str) -> float:
    return await served.metric("proa_frontend_refused_total", reason=reason)


async def test_with_a_token(tmp_path: Path) -> None:
    (image,) = images(1)
    async with guarded(tmp_path) as served, client(served) as proa:
        assert (await proa.infer("digits", image)).source == "worker"
        assert len(await proa.infer_many("digits", [image, image])) == 2
        with Client(served.address, token="secret-b") as sync:
            await asyncio.to_thread(sync.infer, "digits", image)
            await asyncio.to_thread(sync.infer_many, "other", [image])


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "a token is wanted"), ("secret-c", "the token is not known here")],
)
async def test_without_a_right_token(tmp_path: Path, token: str | None, message: str) -> None:
    (image,) = images(1)
    async with guarded(tmp_path) as served, client(served, token) as proa:
        with pytest.raises(Unauthenticated, match=message):
            await proa.infer("digits", {"image": image})
        with pytest.raises(Unauthenticated, match=message):
            await proa.infer_many("digits", [{"image": image}])
        for call in (proa.models(), proa.metadata("digits"), proa.is_ready("digits")):
            with pytest.raises(Unauthenticated):
                await call
        assert await refusals(served, "wrong" if token else "missing") == 5


async def test_what_is_open_to_all(tmp_path: Path) -> None:
    async with guarded(tmp_path) as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (await served.stub.ServerLive(service_pb2.ServerLiveRequest())).live
        assert (await served.stub.ServerReady(service_pb2.ServerReadyRequest())).ready
        async with client(served, None) as proa:
            assert await proa.is_ready()


async def test_reflection_and_status_are_not(tmp_path: Path) -> None:
    async with guarded(tmp_path) as served:
        status = frontend_pb2_grpc.FrontendStub(served.channel)  # type: ignore[no-untyped-call]
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        for metadata in (None, rpc.bearer("secret-c")):
            for call in (
                status.Status(frontend_pb2.StatusRequest(), metadata=metadata),
                reflection.ServerReflectionInfo(asked, metadata=metadata),
                health_pb2_grpc.HealthStub(served.channel).Watch(
                    health_pb2.HealthCheckRequest(), metadata=metadata
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        good = rpc.bearer("secret-a")
        names = await reflection.ServerReflectionInfo(asked, metadata=good).read()
        assert "proa.api.v1.Frontend" in str(names)


async def test_models_of_a_token(tmp_path: Path) -> None:
    (image,) = images(1)
    async with guarded(tmp_path) as served, client(served) as proa:
        for call in (proa.infer("other", image), proa.metadata("other"), proa.is_ready("other")):
            with pytest.raises(PermissionDenied, match="'team-a' is not for model 'other'"):
                await call
        with pytest.raises(PermissionDenied):  # whether there is one is none of its business
            await proa.infer("absent", image)
        assert await refusals(served, "model") >= 4
        (refused,) = await proa.infer_each("other", [{"image": image}])
        assert isinstance(refused, PermissionDenied)
        assert [model.name for model in await proa.models()] == ["digits"]
        assert await models_in_status(served, "secret-a") == ["digits"]
        assert await models_in_status(served, "secret-b") == ["digits", "other"]
        async with client(served, "secret-b") as other:
            with pytest.raises(UnknownModel):
                await other.infer("absent", image)


async def models_in_status(served: Frontend, token: str) -> list[str]:
    stub = frontend_pb2_grpc.FrontendStub(served.channel)  # type: ignore[no-untyped-call]
    call = stub.Status(frontend_pb2.StatusRequest(), metadata=rpc.bearer(token))
    report = await call.read()
    call.cancel()
    return sorted(model.name for model in report.models)


async def test_the_rate_of_a_token(tmp_path: Path) -> None:
    (image,) = images(1)
    more = {"team-a": ["ratePerSecond: 0.5", "burst: 3"], "team-b": []}
    async with guarded(tmp_path, more) as served, client(served) as proa:
        await proa.infer("digits", {"image": image})
        # The stream is a call, and so is each of its requests.
        found = await proa.infer_each("digits", [{"image": image}] * 3)
        assert [isinstance(one, Overloaded) for one in found].count(True) == 2
        with pytest.raises(Overloaded, match=r"more than 0\.5 calls") as caught:
            await proa.infer("digits", {"image": image})
        assert 1.0 < caught.value.retry_after_s <= 2.0
        async with client(served, "secret-b") as other:
            await other.infer("digits", {"image": image})
        assert await refusals(served, "rate") == 3


async def test_guessing_is_answered_with_a_delay(tmp_path: Path) -> None:
    async with guarded(tmp_path) as served, client(served, "secret-c") as proa:
        for _ in range(WRONG_MAX):
            with pytest.raises(Unauthenticated):
                await proa.models()
        with pytest.raises(Overloaded, match="without a right token") as caught:
            await proa.models()
        assert 0.0 < caught.value.retry_after_s <= 6.0
        assert await refusals(served, "guessing") == 1
        async with client(served) as right:  # perhaps behind the same proxy
            await right.models()


async def test_a_token_that_is_taken_away(tmp_path: Path) -> None:
    async with guarded(tmp_path) as served, client(served) as proa:
        await proa.models()
        status = frontend_pb2_grpc.FrontendStub(served.channel)  # type: ignore[no-untyped-call]
        watching = status.Status(
            frontend_pb2.StatusRequest(interval_ms=100), metadata=rpc.bearer("secret-a")
        )
        await watching.read()
        write_tokens(tmp_path / "tokens.yaml", {"team-b": []})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(watching)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(Unauthenticated):
            await proa.models()


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_tenants_share_no_group(tmp_path: Path) -> None:
    """Four queries at once, two of each tenant: no group has members of both."""
    tokens = write_tokens(tmp_path / "tokens.yaml", {"team-a": [], "team-b": []})
    text = "policy: parity, placement: inline, groupMsMax: 60000"
    fakes = [FakeTriton() for _ in range(6)]
    async with cluster_with_tokens(tmp_path, text, fakes, tokens) as served:
        groups: dict[str, set[int]] = {"secret-a": set(), "secret-b": set()}
        for worker in fakes:
            worker.delay_s = 0.2

        async def ask(token: str, seed: int) -> None:
            answer = await served.stub.ModelInfer(
                request(images(1, seed=seed)[0]), metadata=rpc.bearer(token)
            )
            groups[token].add(answer.parameters["proa.group"].int64_param)

        asked = [("secret-a", 1), ("secret-b", 2), ("secret-a", 3), ("secret-b", 4)]
        await asyncio.gather(*(ask(token, seed) for token, seed in asked))
        assert groups["secret-a"].isdisjoint(groups["secret-b"])
        assert len(groups["secret-a"]) == len(groups["secret-b"]) == 1


@contextlib.asynccontextmanager
async def cluster_with_tokens(
    folder: Path, redundancy: str, fakes: list[FakeTriton], tokens: Path
) -> AsyncIterator[Frontend]:
    async with contextlib.AsyncExitStack() as stack:
        for worker in fakes:
            await stack.enter_async_context(worker)
        served = await stack.enter_async_context(
            frontend(
                specs=str(write_spec(folder, redundancy)),
                workers=worker_list("digits", fakes),
                tokens=tokens,
            )
        )
        await until(lambda: all_joined(served, len(fakes)))
        yield served


async def all_joined(served: Frontend, count: int) -> bool:
    return await served.metric("proa_workers", state="up") == count


async def test_the_command_line(tmp_path: Path, capsys: Any) -> None:
    file, wrong = tmp_path / "token", tmp_path / "wrong"
    async with guarded(tmp_path) as served:
        await asyncio.to_thread(file.write_text, "secret-a\n")
        await asyncio.to_thread(wrong.write_text, "secret-c\n")

        async def run(*arguments: str) -> int:
            flags = ["--address", served.address, "--json"]
            return await asyncio.to_thread(main, [*arguments, *flags])

        assert await run("infer", "digits", "--random", "--token-file", str(file)) == 0
        assert await run("status", "--token-file", str(file)) == 0
        assert await run("status", "--token-file", str(wrong)) == 1
        assert "the token is not known here" in capsys.readouterr().err
        assert await run("status") == 1
        assert "a token is wanted" in capsys.readouterr().err
        assert await run("status", "--token-file", str(tmp_path / "none")) == 2


@pytest.mark.parametrize("token", ["", "two words", "line\n", "ü", "x" * 513])
def test_a_token_that_cannot_be_sent(token: str) -> None:
    with pytest.raises(InvalidRequest, match="token: must be 1 to 512 visible") as caught:
        Client("localhost:8001", token=token)
    assert not token or token not in str(caught.value)


async def test_headers_have_a_limit(tmp_path: Path) -> None:
    async with guarded(tmp_path) as served:
        with pytest.raises(InvalidRequest, match="metadata size exceeds hard limit"):
            async with rpc.peer_errors("frontend"):
                await served.stub.ServerLive(
                    service_pb2.ServerLiveRequest(), metadata=(("x", "y" * 20_000),)
                )
