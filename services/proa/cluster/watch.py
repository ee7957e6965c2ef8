"""Endpoints from the Kubernetes API: list EndpointSlices, then watch them, for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from proa.cluster.api import ApiAccess, load_api
from proa.cluster.connection import ApiError, Call, Connection, parse
from proa.cluster.endpoints import Endpoint
from proa.cluster.retry import Pause, Retry
from proa.cluster.slices import ROLE_LABEL, Picture, Slices
from proa.errors import ProaError, Unavailable

GROUP, RESOURCE = "discovery.k8s.io", "endpointslices"
INSTANCE_LABEL = "app.kubernetes.io/instance"
GONE = 410


@dataclass(frozen=True)
class WatchLimits:
    """`watch_s`: the server ends a watch after so long; `silent_s`: a connection on which nothing
    came for so long is dead. Bookmarks come about once a minute, and the end comes in time."""

    watch_s: float = 60.0
    silent_s: float = 75.0


class KubernetesSlices:
    """The endpoints of one installation: EndpointSlices with its instance label and a role.

    `namespace` None: that of `api`. Trouble is told to `on_error` and tried again with growing
    waits; the last picture stays in force meanwhile.
    """

    def __init__(
        self,
        *,
        namespace: str | None,
        instance: str,
        api: ApiAccess | None = None,
        on_error: Callable[[str], None],
        limits: WatchLimits | None = None,
        retry: Retry | None = None,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._access = api or load_api(os.environ)
        self._namespace = namespace or self._access.namespace
        self._selector = f"{INSTANCE_LABEL}={instance},{ROLE_LABEL}"
        self._on_error = on_error
        self._limits = limits or WatchLimits()
        self._retry = retry or Retry()
        self._pause = pause
        self._slices = Slices()
        self._version = ""  # of the last event; "": list before watching
        self._complaints: tuple[str, ...] = ()

    async def snapshots(self) -> AsyncIterator[frozenset[Endpoint]]:
        """The full picture at every change. Never ends; raises nothing of the network's."""
        last: frozenset[Endpoint] | None = None
        clock = asyncio.get_running_loop().time
        async with Connection(self._access) as connection:
            while True:
                asked_s, began = 0.0, clock()
                try:
                    async with contextlib.aclosing(self._pictures(connection)) as pictures:
                        async for picture in pictures:
                            self._complain(picture)
                            if picture.endpoints != last:
                                last = picture.endpoints
                                yield last
                except ProaError as exc:
                    asked_s = self._trouble(exc)
                if clock() - began > self._retry.most_s:
                    self._retry.reset()
                await self._pause(self._retry.next_s(asked_s))

    async def _pictures(self, connection: Connection) -> AsyncGenerator[Picture, None]:
        """A picture after the list, if there is one, and after each event of one watch."""
        if not self._version:
            listed = await connection.answer(self._call("list", {}))
            self._version = self._slices.replace(listed)
            yield self._slices.picture()
        limits = self._limits
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, round(limits.watch_s))),
        }
        call = self._call("watch", query)
        # A watch that brings nothing, not even a bookmark, is followed by a list: the version may
        # be one that the server will never reach (etcd restored from a backup).
        self._version = ""
        async with contextlib.aclosing(connection.lines(call, silent_s=limits.silent_s)) as lines:
            async for line in lines:
                event = parse(line)
                if event.get("type") == "ERROR":
                    raise connection.refusal(call, event.get("object"))
                self._version = self._slices.apply(event)
                self._retry.reset()
                if event.get("type") != "BOOKMARK":
                    yield self._slices.picture()

    def _call(self, verb: str, query: Mapping[str, str]) -> Call:
        selected = {**query, "labelSelector": self._selector}
        return Call(verb, GROUP, RESOURCE, self._namespace, query=selected)

    def _trouble(self, exc: ProaError) -> float:
        """Note what went wrong; the seconds that the server asked us to wait."""
        refused = exc if isinstance(exc, ApiError) else None
        if refused or not isinstance(exc, Unavailable):
            self._version = ""  # only after a broken connection may the watch go on where it was
        if refused is None or refused.code != GONE:  # 410 is part of normal life
            self._on_error(str(exc))
        return refused.retry_after_s if refused else 0.0

    def _complain(self, picture: Picture) -> None:
        for complaint in picture.complaints:
            if complaint not in self._complaints:
                self._on_error(complaint)
        self._complaints = picture.complaints
