"""What discovery hands to the frontend: endpoints, and sources of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

READY = "ready"
DRAINING = "draining"


@dataclass(frozen=True)
class Endpoint:
    """One pod behind a Service, ready to be called or about to leave."""

    name: str  # the pod; the IP where the pod is not known
    address: str  # host:port for gRPC, [v6]:port
    domain: str  # failure domain: the node; the name where the node is not known
    role: str  # frontend | encoder | decoder | worker | parity-worker
    model: str  # "" for roles that serve every model
    state: str  # READY, or DRAINING: on its way out, but still finishing what it has


class EndpointSource(Protocol):
    """Where endpoints come from. Transient trouble is retried inside and told to `on_error`."""

    def snapshots(self) -> AsyncIterator[frozenset[Endpoint]]:
        """Yield the full picture, first as soon as it is known, then at every change; never end."""
        ...
