"""Endpoints by DNS: what a resolver says, and what happens when it says nothing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import Any

import pytest

from fakes.clock import ManualClock
from fakes.eventually import eventually
from proa.cluster import READY, Endpoint
from proa.cluster import slices as slices_module
from proa.cluster.dns import DnsName, DnsNames

WORKERS = DnsName("f-worker-digits.models.svc.", 8001)
ENCODERS = DnsName("f-encoder.models.svc.", 8010)
NAMES = {WORKERS: ("worker", "digits"), ENCODERS: ("encoder", "")}


class Resolver:
    """`answers`: addresses by host, or an error number of getaddrinfo."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | int | Exception] = {}

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        found = self.answers.get(host, socket.EAI_NONAME)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, int):
            raise socket.gaierror(found, "said so")
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, port)) for ip in found
        ]


def worker(ip: str) -> Endpoint:
    return Endpoint(ip, f"{ip}:8001", ip, "worker", "digits", READY)


async def test_pictures_follow_the_records() -> None:
    resolver, clock, errors = Resolver(), ManualClock(), list[str]()
    names = dict(NAMES)
    resolver.answers[WORKERS.host] = ["10.0.0.2", "10.0.0.1", "10.0.0.1"]
    source = DnsNames(lambda: names, errors.append, resolve=resolver, pause=clock.pause)
    async with aclosing(source.snapshots()) as pictures:
        assert await anext(pictures) == {worker("10.0.0.1"), worker("10.0.0.2")}

        resolver.answers[WORKERS.host] = socket.EAI_AGAIN
        resolver.answers[ENCODERS.host] = ["fd00::1"]
        picture = anext(pictures)
        clock.advance(5.0)
        encoder = Endpoint("fd00::1", "[fd00::1]:8010", "fd00::1", "encoder", "", READY)
        found = await _next(picture, clock)
        assert found == {worker("10.0.0.1"), worker("10.0.0.2"), encoder}
        assert errors == [f"DNS: {WORKERS.host}: said so"]

        del names[ENCODERS]
        assert await _next(anext(pictures), clock) == {worker("10.0.0.1"), worker("10.0.0.2")}

        resolver.answers[WORKERS.host] = socket.EAI_NONAME
        assert await _next(anext(pictures), clock) == frozenset()
    assert set(clock.asked) == {5.0}


async def _next(picture: Any, clock: ManualClock) -> frozenset[Endpoint]:
    """The next picture; the clock goes on until it comes."""
    task = asyncio.ensure_future(picture)

    def come() -> bool:
        clock.advance(5.0)
        return task.done()

    await eventually(come)
    return task.result()  # type: ignore[no-any-return]


async def test_one_family_only_as_dns_cannot_say_which_two_are_one_pod() -> None:
    resolver = Resolver()
    resolver.answers[WORKERS.host] = ["fd00::1", "10.0.0.1"]
    source = DnsNames(lambda: NAMES, _fail, resolve=resolver, pause=ManualClock().pause)
    async with aclosing(source.snapshots()) as pictures:
        assert await anext(pictures) == {worker("10.0.0.1")}


@pytest.mark.parametrize("error", [OSError("no file left"), UnicodeError("label too long")])
async def test_trouble_of_any_kind_is_told(error: Exception) -> None:
    resolver, errors = Resolver(), list[str]()
    resolver.answers[WORKERS.host] = error
    source = DnsNames(lambda: NAMES, errors.append, resolve=resolver, pause=ManualClock().pause)
    async with aclosing(source.snapshots()) as pictures:
        assert await anext(pictures) == frozenset()
    assert len(errors) == 1
    assert WORKERS.host in errors[0]
    assert str(error) in errors[0]


async def test_too_many_records_are_said() -> None:
    resolver, errors = Resolver(), list[str]()
    limit = slices_module.ENDPOINTS_MAX
    resolver.answers[WORKERS.host] = [f"10.0.{i // 256}.{i % 256}" for i in range(limit + 1)]
    source = DnsNames(lambda: NAMES, errors.append, resolve=resolver, pause=ManualClock().pause)
    async with aclosing(source.snapshots()) as pictures:
        assert len(await anext(pictures)) == limit
    assert errors == [
        f"DNS: {limit + 1} endpoints are more than the limit of {limit}: 1 are left out"
    ]


async def test_the_real_resolver() -> None:
    names = {
        DnsName("localhost", 8001): ("worker", "digits"),
        DnsName("no-such-host.invalid.", 8001): ("worker", "other"),
    }
    source = DnsNames(lambda: names, lambda _: None, pause=ManualClock().pause)
    async with aclosing(source.snapshots()) as pictures:
        found = await anext(pictures)
    assert {one.model for one in found} == {"digits"}


def _fail(text: str) -> None:
    raise AssertionError(text)
