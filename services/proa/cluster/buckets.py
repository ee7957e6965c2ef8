"""Buckets of S3 services, and what their errors mean."""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from proa.errors import EnvironmentLacks, ProaError, SettingsError, Unavailable, UnknownModel

REDIRECTS_MAX = 5
_TRANSIENT = (408, 425, 429)
_DENIED = (401, 403, 407)


def connect(
    endpoint: str, region: str | None, environ: Mapping[str, str], timeout_s: float, setting: str
) -> Minio:
    """A client of the service at `endpoint`, with the credentials of AWS_* in `environ`, if any.

    setting: what the endpoint is called in errors. Errors: SettingsError."""
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise SettingsError(
            f"{setting}={endpoint!r} is not http:// or https:// with a host and nothing after it"
        )
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(access) != bool(secret):
        raise SettingsError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together; one is empty")
    return Minio(
        endpoint=url.netloc,
        access_key=access or None,
        secret_key=secret or None,
        session_token=environ.get("AWS_SESSION_TOKEN") or None,
        secure=url.scheme == "https",
        region=region,
        http_client=pool(url, timeout_s),
    )


def pool(url: SplitResult, timeout_s: float) -> urllib3.PoolManager:
    """Connections to `url`, through the proxy that the environment names, if any."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=timeout_s, read=timeout_s),
        "retries": urllib3.Retry(
            None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS_MAX
        ),
        "ca_certs": os.environ.get("SSL_CERT_FILE") or certifi.where(),
    }
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


@contextmanager
def s3_errors(shown: str, setting: str) -> Iterator[None]:
    """Maps errors of the client to ours: Unavailable may pass, the others (UnknownModel where
    there is nothing, EnvironmentLacks, SettingsError) will not. `shown`: the URL without secrets;
    `setting`: what it is called."""
    try:
        yield
    except S3Error as exc:
        raise refusal(shown, exc.response.status, f"{exc.code}: {exc.message}") from exc
    except (LocationValueError, ValueError) as exc:  # minio checks names with ValueError
        raise SettingsError(f"{setting}: {exc}") from exc
    except (HTTPError, MinioException, OSError) as exc:
        # The outer error would show the whole URL.
        cause = exc.reason if isinstance(exc, MaxRetryError) else exc
        if isinstance(cause, SSLError):
            raise EnvironmentLacks(
                f"{shown}: {cause}; SSL_CERT_FILE names the certificate authorities to trust"
            ) from exc
        raise Unavailable(f"{shown}: {cause}") from exc


def refusal(shown: str, status: int, reason: str) -> ProaError:
    """What an HTTP status other than 200 means."""
    text = f"{shown}: HTTP {status} {reason}"
    if status in _TRANSIENT or status >= 500:
        return Unavailable(text)
    if status in _DENIED:
        return EnvironmentLacks(f"{text}; the credentials are missing or not enough")
    return UnknownModel(text)


@dataclass(frozen=True)
class Folder:
    """The objects of a bucket whose names begin with `prefix` and a slash; none: all of them.

    Errors of all methods: those of `s3_errors`.
    """

    client: Minio
    bucket: str
    prefix: str

    @property
    def shown(self) -> str:
        return "/".join(filter(None, (f"s3://{self.bucket}", self.prefix)))

    def is_empty(self) -> bool:
        with self._errors():
            found = self.client.list_objects(self.bucket, prefix=self._key(""), recursive=True)
            return next(iter(found), None) is None

    def get(self, name: str) -> bytes:
        """The whole object."""
        with self._errors():
            response = self.client.get_object(self.bucket, self._key(name))
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def put(self, name: str, content: bytes) -> None:
        """There as a whole when this returns."""
        with self._errors():
            self.client.put_object(self.bucket, self._key(name), io.BytesIO(content), len(content))

    def move(self, old: str, new: str) -> None:
        """Give an object another name."""
        with self._errors():
            source = CopySource(self.bucket, self._key(old))
            self.client.copy_object(self.bucket, self._key(new), source)
            self.client.remove_object(self.bucket, self._key(old))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _errors(self) -> Any:
        return s3_errors(self.shown, self.shown)
