"""The workers of a frontend as its settings name them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from proa.dispatch.events import DEPLOYED, PARITY
from proa.errors import InvalidRequest, SettingsError
from proa.rpc import check_address

ROLES = {
    None: frozenset((DEPLOYED, PARITY)),
    "deployed+parity": frozenset((DEPLOYED, PARITY)),
    DEPLOYED: frozenset((DEPLOYED,)),
    PARITY: frozenset((PARITY,)),
}
WORKERS_MAX = 4096

_WORKER = re.compile(r"(?P<address>[^@#]+)(@(?P<domain>[^@#]{1,253}))?(#(?P<role>.+))?")


@dataclass(frozen=True)
class WorkerAddress:
    """`name`: in status and in the response parameter `proa.worker`; `domain`: what fails
    together."""

    name: str
    address: str
    domain: str
    roles: frozenset[str]


def parse_workers(text: str) -> dict[str, tuple[WorkerAddress, ...]]:
    """`digits=h:1@node-a,h:2@node-b#parity;other=...` by model. Errors: SettingsError."""
    found: dict[str, tuple[WorkerAddress, ...]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        model, equals, rest = part.partition("=")
        if not equals or not model or model in found:
            raise SettingsError(f"PROA_FRONTEND_WORKERS: {part[:80]!r} is not one model=workers")
        workers = tuple(_worker(w.strip()) for w in rest.split(",") if w.strip())
        names = {w.address for w in workers}
        if not 0 < len(workers) <= WORKERS_MAX or len(names) != len(workers):
            raise SettingsError(
                f"PROA_FRONTEND_WORKERS: model {model!r} needs 1 to {WORKERS_MAX} workers,"
                " each once"
            )
        found[model] = _named(workers)
    return found


def parse_addresses(text: str | None, variable: str) -> tuple[str, ...]:
    """`host:port,host:port`. Errors: SettingsError, naming `variable`."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    try:
        return tuple(check_address(part) for part in parts)
    except InvalidRequest as exc:
        raise SettingsError(f"{variable}: {exc}") from exc


def _worker(text: str) -> WorkerAddress:
    found = _WORKER.fullmatch(text)
    role = found["role"] if found else None
    if found is None or role not in ROLES:
        raise SettingsError(
            f"PROA_FRONTEND_WORKERS: {text[:80]!r} is not host:port[@domain][#deployed|#parity]"
        )
    (address,) = parse_addresses(found["address"], "PROA_FRONTEND_WORKERS") or ("",)
    if not address:
        raise SettingsError(f"PROA_FRONTEND_WORKERS: {text[:80]!r} has no address")
    return WorkerAddress(address, address, found["domain"] or address, ROLES[role])


def _named(workers: Sequence[WorkerAddress]) -> tuple[WorkerAddress, ...]:
    """Each called after its domain; where that is not its alone, after domain and address."""
    shared = Counter(w.domain for w in workers)
    return tuple(
        replace(w, name=w.domain if shared[w.domain] == 1 else f"{w.domain}/{w.address}")
        for w in workers
    )
