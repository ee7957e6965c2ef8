"""Which source tells who is where, as the settings say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from proa.cluster.endpoints import EndpointSource
from proa.errors import SettingsError
from proa.frontend.addresses import parse_addresses, parse_workers
from proa.frontend.membership import View
from proa.frontend.settings import FrontendSettings
from proa.spec import CodedModel

if TYPE_CHECKING:
    from proa.cluster.dns import DnsName

log = logging.getLogger(__name__)

# A DNS answer has no ports: these are the ones of the chart.
FRONTEND_PORT, WORKER_PORT, ENCODER_PORT, DECODER_PORT = 8001, 8001, 8010, 8011

_ADDRESSES = ("workers", "encoders", "decoders")


class Complaints:
    """Takes errors of a source: counts all, logs one only when it differs from the last."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count
        self._last = ""

    def __call__(self, text: str) -> None:
        self._count()
        if text != self._last:
            self._last = text
            log.error("discovery: %s", text)

    def over(self) -> None:
        """The source works again."""
        if self._last:
            log.info("discovery works again")
        self._last = ""


def fixed_view(settings: FrontendSettings) -> View:
    """Who is where as the settings say. Errors: SettingsError."""
    return View(
        fixed=parse_workers(settings.workers or ""),
        encoders=parse_addresses(settings.encoders, "PROA_FRONTEND_ENCODERS"),
        decoders=parse_addresses(settings.decoders, "PROA_FRONTEND_DECODERS"),
    )


def check_fixed(view: View, models: Mapping[str, CodedModel]) -> None:
    """Settings and spec files name the same models. Errors: SettingsError."""
    needed = {name for name, spec in models.items() if spec.model.endpoint is None}
    if not needed <= view.fixed.keys() <= models.keys():
        raise SettingsError(
            f"PROA_FRONTEND_WORKERS names workers for {sorted(view.fixed)}, the specs"
            f" {sorted(models)}"
        )


def make_source(
    settings: FrontendSettings,
    models: Callable[[], Mapping[str, CodedModel]],
    on_error: Callable[[str], None],
) -> EndpointSource:
    """Discovery by the Kubernetes API or by DNS. `models`: what is served now. Errors:
    SettingsError, EnvironmentLacks."""
    for name in _ADDRESSES:
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"PROA_FRONTEND_{name.upper()} is for PROA_FRONTEND_DISCOVERY=static, not"
                f" {settings.discovery}"
            )
    # Imported where they are needed: a frontend on one machine has no Kubernetes client.
    if settings.discovery == "kubernetes":
        from proa.cluster.watch import KubernetesSlices

        return KubernetesSlices(
            namespace=settings.namespace,
            instance=_needed(settings.instance, "INSTANCE", settings),
            on_error=on_error,
        )
    from proa.cluster.dns import DnsNames

    prefix = _needed(settings.dns_prefix, "DNS_PREFIX", settings)
    return DnsNames(lambda: dns_names(prefix, settings.dns_suffix, models()), on_error)


def dns_names(
    prefix: str, suffix: str | None, models: Mapping[str, CodedModel]
) -> dict[DnsName, tuple[str, str]]:
    """The names to ask for, with role and model of who is found there."""
    from proa.cluster.dns import DnsName

    # With its dot at the end a full name is not tried in the search domains first.
    end = f"{suffix.rstrip('.')}." if suffix else ""

    def name(middle: str, port: int) -> DnsName:
        return DnsName(f"{prefix}-{middle}{end}", port)

    found = {
        name("frontend-peers", FRONTEND_PORT): ("frontend", ""),
        name("encoder", ENCODER_PORT): ("encoder", ""),
        name("decoder", DECODER_PORT): ("decoder", ""),
    }
    for model, spec in models.items():
        if spec.model.endpoint is not None:
            continue
        found[name(f"worker-{model}", WORKER_PORT)] = ("worker", model)
        if spec.redundancy.pool == "dedicated":
            found[name(f"parity-worker-{model}", WORKER_PORT)] = ("parity-worker", model)
    return found


def _needed(value: str | None, name: str, settings: FrontendSettings) -> str:
    if value is None:
        raise SettingsError(
            f"PROA_FRONTEND_{name} is not set; it is required with PROA_FRONTEND_DISCOVERY="
            f"{settings.discovery}"
        )
    return value
