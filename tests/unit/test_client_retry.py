"""A call that finds no server, or whose server stops, is made again."""

from __future__ import annotations

import asyncio

import pytest

from fakes.triton_fake import FakeTriton, images
from proa.client import AsyncClient, Client, ProaError


async def infer(kind, address, **options):
    (image,) = images(1)
    if kind is AsyncClient:
        async with AsyncClient(address, deadline_s=10.0, **options) as client:
            return await client.infer("digits", {"image": image})

    def ask():
        with Client(address, deadline_s=10.0, **options) as client:
            return client.infer("digits", {"image": image})

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize("status", ["UNAVAILABLE", "CANCELLED"])
async def test_what_may_succeed_elsewhere_is_tried_again(kind, status):
    async with FakeTriton() as server:
        server.fail_next(2, status)
        assert (await infer(kind, server.address))["logits"].shape == (1, 10)
        assert server.calls["deployed"] == 3
        server.fail_next(9, status)
        with pytest.raises(ProaError, match=status):
            await infer(kind, server.address)
        assert server.calls["deployed"] == 7


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize("status", ["INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
async def test_what_would_fail_again_is_not(kind, status):
    async with FakeTriton() as server:
        server.fail_next(1, status)
        with pytest.raises(ProaError):
            await infer(kind, server.address)
        assert server.calls["deployed"] == 1


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_nothing_is_tried_again_where_the_caller_says_so(kind):
    async with FakeTriton() as server:
        server.fail_next(1, "UNAVAILABLE")
        with pytest.raises(ProaError, match="UNAVAILABLE"):
            await infer(kind, server.address, retry=False)
        assert server.calls["deployed"] == 1
