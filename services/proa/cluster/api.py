"""Where the Kubernetes API is and who we are there: a pod's service account, or a kubeconfig.

The `kubernetes` package is imported where it is used: a frontend without a cluster does not need
it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from proa.errors import EnvironmentLacks, Unavailable

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_BYTES_MAX = 64 << 10


@dataclass(frozen=True)
class ApiAccess:
    """`namespace`: our own; `source`: where this was read, for messages; `configure`: reads it
    anew (tokens rotate) into a kubernetes.aio.client.Configuration."""

    namespace: str
    source: str
    configure: Callable[[], Awaitable[Any]]


def load_api(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> ApiAccess:
    """Access by KUBECONFIG where it is set, else by the service account of this pod.

    Errors: EnvironmentLacks, naming what is missing.
    """
    try:
        import kubernetes.aio.client  # noqa: F401 - see the module's docstring
    except ImportError as exc:
        raise EnvironmentLacks(
            "the package kubernetes is not installed: pip install 'proa[cluster]'"
        ) from exc
    if environ.get("KUBECONFIG"):
        return _from_kubeconfig(environ["KUBECONFIG"])
    host, port = (environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    if not host or not port:
        missing = "KUBERNETES_SERVICE_HOST" if not host else "KUBERNETES_SERVICE_PORT"
        raise EnvironmentLacks(
            f"no way to the Kubernetes API: {missing} is not set (this is not a pod) and"
            " KUBECONFIG is not set"
        )
    return _from_account(host, port, account)


def _from_account(host: str, port: str, account: Path) -> ApiAccess:
    authority = f"[{host}]" if ":" in host else host
    token_file, ca_file = account / "token", account / "ca.crt"
    namespace = _file(account / "namespace")
    _file(token_file)
    _file(ca_file)

    async def configure() -> Any:
        from kubernetes.aio.client import Configuration

        host_url = f"https://{authority}:{port}"
        found: Any = Configuration(host=host_url, ssl_ca_cert=str(ca_file))

        def read_token(configuration: Any) -> None:
            # Before every call: the kubelet rotates the file, and old tokens expire.
            configuration.api_key["BearerToken"] = f"Bearer {_file(token_file)}"

        read_token(found)
        found.refresh_api_key_hook = read_token
        return found

    return ApiAccess(namespace, f"the service account in {account}", configure)


def _from_kubeconfig(paths: str) -> ApiAccess:
    parts = [part for part in paths.split(os.pathsep) if part]
    if not any(Path(part).expanduser().is_file() for part in parts):
        raise EnvironmentLacks(f"KUBECONFIG={paths[:200]!r}: no such file")
    context = _kubeconfig(paths).current_context["context"]
    namespace = context.get("namespace") or "default"

    async def configure() -> Any:
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.config import ConfigException

        found = Configuration()
        try:
            await _kubeconfig(paths).load_and_set(found)
        except (ConfigException, KeyError, OSError, TypeError, ValueError) as exc:
            raise Unavailable(f"KUBECONFIG={paths[:200]!r}: {_brief(exc)}") from exc
        return found

    return ApiAccess(namespace, f"KUBECONFIG={paths}", configure)


def _kubeconfig(paths: str) -> Any:
    """Errors: EnvironmentLacks."""
    from kubernetes.aio.config import ConfigException, kube_config

    loader: Any = kube_config.KubeConfigLoader
    merger: Any = kube_config.KubeConfigMerger
    try:
        # Base path None: certificates are beside the file that names them.
        return loader(merger(paths).config, config_base_path=None)
    except (ConfigException, AttributeError, KeyError, OSError, TypeError, ValueError) as exc:
        raise EnvironmentLacks(f"KUBECONFIG={paths[:200]!r}: {_brief(exc)}") from exc
    except yaml.YAMLError as exc:
        raise EnvironmentLacks(f"KUBECONFIG={paths[:200]!r} is not YAML: {_brief(exc)}") from exc


def _file(path: Path) -> str:
    """The stripped text of a small file. Errors: EnvironmentLacks."""
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_BYTES_MAX).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise EnvironmentLacks(
            f"{path}: {_brief(exc)}; is automountServiceAccountToken false for this pod?"
        ) from exc
    if not text:
        raise EnvironmentLacks(f"{path} is empty")
    return text


def _brief(exc: BaseException) -> str:
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return " ".join((reason or type(exc).__name__).split())[:300]
