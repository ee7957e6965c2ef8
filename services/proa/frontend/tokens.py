"""The file of bearer tokens: who may ask which models, and how often.

tokens:
  - name: team-a                # the tenant; stands in logs, never the token
    sha256: 9f86d081…           # of the token: printf %s TOKEN | sha256sum
    models: [digits]            # absent: all
    ratePerSecond: 100          # absent: no limit
    burst: 200                  # calls at once on top; absent: one second's worth
    faults: true                # may inject faults, where that is on; absent: false
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proa.errors import PermissionDenied, SettingsError, SpecError
from proa.spec.model import NAME, SHA256
from proa.spec.readers import NEEDED, Field, Reader, boolean, integer, list_of, number, table
from proa.spec.section import Section, read_file

TOKENS_MAX = 1000
MODELS_MAX = 1000
RATE_MAX = 1_000_000


@dataclass(frozen=True)
class Tenant:
    """Whom a token stands for. `models`: None is all. `rate_per_second`: None is no limit."""

    name: str
    sha256: str = ""
    models: tuple[str, ...] | None = None
    rate_per_second: float | None = None
    burst: int | None = None
    faults: bool = False

    @property
    def burst_calls(self) -> float:
        """Calls that may come at once."""
        return float(self.burst or max(1, math.ceil(self.rate_per_second or 0.0)))

    def may(self, model: str) -> bool:
        """Whether it may know of `model` at all."""
        return self.models is None or model in self.models

    def check(self, model: str) -> None:
        """Errors: PermissionDenied. Whether there is such a model it does not tell."""
        if not self.may(model):
            raise PermissionDenied(f"token {self.name!r} is not for model {model[:64]!r}")


# Whoever calls a frontend that wants no tokens.
ANYONE = Tenant("")

_TENANT: Reader[Tenant] = table(
    Tenant,
    Field("name", NAME, NEEDED, "the tenant: stands in logs and errors"),
    Field("sha256", SHA256, NEEDED, "of the token, hexadecimal"),
    Field("models", list_of(NAME, MODELS_MAX), None, "models it may ask; absent: all"),
    Field("ratePerSecond", number(0.001, RATE_MAX), None, "calls; absent: no limit"),
    Field("faults", boolean, False, "may call FaultInjector, where it is served"),
    Field("burst", integer(1, RATE_MAX), None, "calls at once; absent: one second's worth"),
)
_FILE: Reader[tuple[Tenant, ...]] = table(
    lambda tokens: tokens,
    Field("tokens", list_of(_TENANT, TOKENS_MAX), NEEDED, "the tokens"),
)


def read_tokens(path: Path) -> Mapping[bytes, Tenant]:
    """Tenants by the sha256 of their token. Errors: SettingsError with file and line."""
    try:
        root = read_file(path)
        tenants = _FILE(root)
        _check_distinct(root, tenants)
    except SpecError as exc:
        raise SettingsError(f"PROA_FRONTEND_TOKENS: {exc}") from exc
    return {bytes.fromhex(tenant.sha256): tenant for tenant in tenants}


def _check_distinct(root: Section, tenants: tuple[Tenant, ...]) -> None:
    """Two tenants of one name would share the groups that must not be mixed."""
    for what in ("name", "sha256"):
        seen: set[str] = set()
        for tenant in tenants:
            value = getattr(tenant, what)
            if value in seen:
                raise root.error(f"tokens: {what} {value!r} stands here twice")
            seen.add(value)
