"""Who is where: endpoints from the Kubernetes API or from DNS, and the Lease.

With chaos, this is the only package that knows the Kubernetes client, which it imports at the
first call: a frontend with a fixed list of workers does not need it.
"""

from __future__ import annotations

from proa.cluster.api import ApiAccess, load_api
from proa.cluster.dns import DnsName, DnsNames
from proa.cluster.endpoints import DRAINING, READY, Endpoint, EndpointSource
from proa.cluster.lease import Lease, LeaseTimes
from proa.cluster.watch import KubernetesSlices

__all__ = [
    "DRAINING",
    "READY",
    "ApiAccess",
    "DnsName",
    "DnsNames",
    "Endpoint",
    "EndpointSource",
    "KubernetesSlices",
    "Lease",
    "LeaseTimes",
    "load_api",
]
