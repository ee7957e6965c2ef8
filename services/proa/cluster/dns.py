"""Endpoints from DNS: the addresses of headless Services, where the API may not be asked.

DNS tells addresses only. So an endpoint's name and domain are its IP (two pods of one node count
as two failure domains), every endpoint is ready (a terminating pod just disappears), and a change
is seen after `interval_s` and the records' time to live.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from proa.cluster.endpoints import READY, Endpoint
from proa.cluster.retry import Pause
from proa.cluster.slices import ENDPOINTS_MAX, join_host_port

LOOKUPS_MAX = 8  # at once
LOOKUP_S = 10.0
# No such name, or a name without addresses: a headless Service with no ready pod.
_EMPTY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

Resolve = Callable[..., list[Any]]


@dataclass(frozen=True)
class DnsName:
    """`host`: best with a trailing dot, or each look-up first tries the search domains."""

    host: str
    port: int


class DnsNames:
    """Resolves `names()` (name -> role, model; asked anew each time) every `interval_s`."""

    def __init__(
        self,
        names: Callable[[], Mapping[DnsName, tuple[str, str]]],
        on_error: Callable[[str], None],
        interval_s: float = 5.0,
        *,
        resolve: Resolve = socket.getaddrinfo,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._names = names
        self._on_error = on_error
        self._interval_s = interval_s
        self._resolve = resolve
        self._pause = pause
        self._found: dict[DnsName, tuple[str, ...]] = {}
        # Threads of our own: a resolver that hangs must not block those of the whole process.
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="proa-dns")

    async def snapshots(self) -> AsyncIterator[frozenset[Endpoint]]:
        """The full picture at every change. Never ends; raises nothing of the network's.

        A name that could not be asked for keeps its last addresses; before it has any, the first
        picture comes without it.
        """
        last: frozenset[Endpoint] | None = None
        try:
            while True:
                names = dict(self._names())
                self._found = {n: found for n, found in self._found.items() if n in names}
                await asyncio.gather(*(self._look_up(name) for name in names))
                picture = self._picture(names)
                if picture != last:
                    last = picture
                    yield picture
                await self._pause(self._interval_s)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, name: DnsName) -> None:
        loop = asyncio.get_running_loop()
        ask = loop.run_in_executor(self._threads, self._ask, name)
        try:
            async with asyncio.timeout(LOOKUP_S):
                self._found[name] = await ask
        except TimeoutError:
            self._on_error(f"DNS: no answer for {name.host} within {LOOKUP_S:g} s")
        except socket.gaierror as exc:
            if exc.errno in _EMPTY:
                self._found[name] = ()
            else:
                self._on_error(f"DNS: {name.host}: {exc.strerror or exc}")
        except (OSError, UnicodeError) as exc:  # no socket left; a label longer than 63
            self._on_error(f"DNS: {name.host[:253]!r}: {exc}")

    def _ask(self, name: DnsName) -> tuple[str, ...]:
        """The addresses of one family, IPv4 before IPv6: which two are one pod DNS cannot say."""
        found = self._resolve(name.host, name.port, type=socket.SOCK_STREAM)
        by_family = {
            family: tuple(sorted({entry[4][0] for entry in found if entry[0] == family}))
            for family in (socket.AF_INET, socket.AF_INET6)
        }
        return by_family[socket.AF_INET] or by_family[socket.AF_INET6]

    def _picture(self, names: Mapping[DnsName, tuple[str, str]]) -> frozenset[Endpoint]:
        found = [
            Endpoint(ip, join_host_port(ip, name.port), ip, role, model, READY)
            for name, (role, model) in names.items()
            for ip in self._found.get(name, ())
        ]
        if len(found) > ENDPOINTS_MAX:
            self._on_error(
                f"DNS: {len(found)} endpoints are more than the limit of {ENDPOINTS_MAX}:"
                f" {len(found) - ENDPOINTS_MAX} are left out"
            )
        return frozenset(
            sorted(found, key=lambda one: (one.role, one.model, one.name))[:ENDPOINTS_MAX]
        )
