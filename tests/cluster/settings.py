"""What `make e2e` reads from the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """registry: where the images are. tag: theirs; empty: the chart's. namespace: made and deleted
    by the tests. address: host:port of the frontends' Service from here; empty: a node's NodePort.
    values: more values files, separated by commas."""

    registry: str
    tag: str = ""
    namespace: str = "proa-e2e"
    release: str = "proa"
    address: str = ""
    values: tuple[str, ...] = ()
    rate_hz: float = 50.0
    timeout_s: float = 600.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Errors: KeyError, without PROA_E2E_REGISTRY; ValueError for no number."""
        files = environ.get("PROA_E2E_VALUES", "")
        return cls(
            registry=environ["PROA_E2E_REGISTRY"],
            tag=environ.get("PROA_E2E_TAG", ""),
            namespace=environ.get("PROA_E2E_NAMESPACE", cls.namespace),
            release=environ.get("PROA_E2E_RELEASE", cls.release),
            address=environ.get("PROA_E2E_ADDRESS", ""),
            values=tuple(filter(None, files.split(","))),
            rate_hz=float(environ.get("PROA_E2E_RATE_HZ", cls.rate_hz)),
            timeout_s=float(environ.get("PROA_E2E_TIMEOUT_S", cls.timeout_s)),
        )


def missing(environ: Mapping[str, str], which: Callable[[str], str | None]) -> list[str]:
    """What there is to do before these tests can run."""
    found = []
    if not environ.get("PROA_E2E_REGISTRY"):
        found.append("set PROA_E2E_REGISTRY to where `make push REGISTRY=...` put the images")
    if not environ.get("KUBECONFIG"):
        found.append("set KUBECONFIG")
    found += [f"install {tool}" for tool in ("kubectl", "helm") if which(tool) is None]
    return found
