"""Queries at a steady rate, whatever becomes of them, and an account of every one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.eventually import eventually
from proa.client import AsyncClient, ProaError

# Asks one query; returns the source of the answer, and raises ProaError if it failed.
Ask = Callable[[int], Awaitable[str]]

OPEN_MAX = 1000
UNMARKED = "unmarked"


@dataclass
class Account:
    """sources: answers by who gave them. failures: number of the query and error."""

    sent: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(self.sources.values())

    def check(self) -> None:
        """AssertionError unless every query was answered."""
        shown = "; ".join(f"#{number}: {error}" for number, error in self.failures[:5])
        assert not self.failures, f"{len(self.failures)} of {self.sent} queries failed: {shown}"
        assert self.answered == self.sent


class Traffic(AbstractAsyncContextManager["Traffic"]):
    """`rate_hz` queries a second until the block ends; then waits for those under way.

    Open loop: a slow answer delays no other query. With OPEN_MAX open, the next one is not sent: it
    counts as failed.
    """

    def __init__(self, ask: Ask, rate_hz: float, *, open_max: int = OPEN_MAX) -> None:
        self.account = Account()
        self._ask = ask
        self._period_s = 1.0 / rate_hz
        self._open_max = open_max
        self._open: set[asyncio.Task[None]] = set()
        self._clock: asyncio.Task[None] | None = None

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.account.answered + count
        await eventually(lambda: self.account.answered >= wanted, timeout_s=60.0)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            number = self.account.sent
            await asyncio.sleep(max(0.0, start + number * self._period_s - loop.time()))
            self.account.sent += 1
            if len(self._open) >= self._open_max:
                self.account.failures.append((number, f"{self._open_max} queries are open"))
                continue
            task = asyncio.create_task(self._one(number))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _one(self, number: int) -> None:
        try:
            source = await self._ask(number)
        except ProaError as exc:
            self.account.failures.append((number, f"{type(exc).__name__}: {exc}"))
        else:
            self.account.sources[source] += 1

    async def __aenter__(self) -> Self:
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._clock is not None
        self._clock.cancel()
        await asyncio.gather(self._clock, return_exceptions=True)
        await asyncio.gather(*self._open)


def with_proa(client: AsyncClient, model: str, name: str, queries: np.ndarray[Any, Any]) -> Ask:
    """Asks through our client. queries: (n, 1, ...), one after the other for ever."""

    async def ask(number: int) -> str:
        answer = await client.infer(model, {name: queries[number % len(queries)]})
        return answer.source or UNMARKED

    return ask


def with_triton(
    client: triton.InferenceServerClient, model: str, name: str, queries: np.ndarray[Any, Any]
) -> Ask:
    """The same through Triton's client, which never asks twice."""

    async def ask(number: int) -> str:
        query = queries[number % len(queries)]
        tensor = triton.InferInput(name, query.shape, np_to_triton_dtype(query.dtype))
        tensor.set_data_from_numpy(query)
        try:
            answer = await client.infer(model, [tensor], client_timeout=10.0)
        except InferenceServerException as exc:
            raise ProaError(str(exc)) from exc
        source = answer.get_response().parameters["proa.source"].string_param
        return source or UNMARKED

    return ask
