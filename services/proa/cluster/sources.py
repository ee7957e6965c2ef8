"""Where model files come from: an HTTP server, or a bucket of any S3 service."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from proa.cluster.settings import FetchSettings
from proa.errors import EnvironmentLacks, ProaError, SettingsError, Unavailable, UnknownModel

REDIRECTS_MAX = 5
_CHUNK_BYTES = 1 << 16
_TRANSIENT = (408, 425, 429)
_DENIED = (401, 403, 407)
_OK, _SERVER_ERROR = 200, 500


class Source:
    """One archive at one place. Errors of `pieces`: Unavailable may pass, the others (UnknownModel,
    EnvironmentLacks, SettingsError) will not."""

    def __init__(self, settings: FetchSettings, environ: Mapping[str, str]) -> None:
        """Errors: SettingsError, naming the variable."""
        url = _split(settings.url)
        kinds: dict[str, Callable[[], Callable[[], Any]]] = {
            "http": lambda: _http(settings, url),
            "https": lambda: _http(settings, url),
            "s3": lambda: _s3(settings, url, environ),
        }
        if url.scheme not in kinds:
            raise SettingsError(
                f"PROA_FETCH_URL: the source {url.scheme!r} is not known; known are"
                f" {', '.join(kinds)}"
            )
        # What a signed URL has in its query is nobody's business.
        self.shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        self._start = kinds[url.scheme]()

    def pieces(self) -> Generator[bytes]:
        """The bytes of the archive, piece by piece; close it when done."""
        with self._errors():
            response = self._start()
            try:
                if response.status != _OK:
                    raise self._refusal(response.status, str(response.reason))
                while piece := response.read1(_CHUNK_BYTES, decode_content=False):
                    yield piece
                if response.length_remaining:  # read1 does not look
                    raise Unavailable(f"{self.shown}: the connection ended before the archive did")
            finally:
                response.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except S3Error as exc:
            raise self._refusal(exc.response.status, f"{exc.code}: {exc.message}") from exc
        except (LocationValueError, ValueError) as exc:  # minio checks names with ValueError
            raise SettingsError(f"PROA_FETCH_URL: {exc}") from exc
        except (HTTPError, MinioException, OSError) as exc:
            # The outer error would show the whole URL.
            cause = exc.reason if isinstance(exc, MaxRetryError) else exc
            if isinstance(cause, SSLError):
                raise EnvironmentLacks(
                    f"{self.shown}: {cause}; SSL_CERT_FILE names the certificate authorities to"
                    " trust"
                ) from exc
            raise Unavailable(f"{self.shown}: {cause}") from exc

    def _refusal(self, status: int, reason: str) -> ProaError:
        text = f"{self.shown}: HTTP {status} {reason}"
        if status in _TRANSIENT or status >= 500:
            return Unavailable(text)
        if status in _DENIED:
            return EnvironmentLacks(f"{text}; the credentials are missing or may not read it")
        return UnknownModel(text)


def _split(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as exc:
        raise SettingsError(f"PROA_FETCH_URL: {exc}") from exc
    if url.scheme in ("http", "https", "s3") and not url.hostname:
        raise SettingsError(f"PROA_FETCH_URL: no host or bucket after {url.scheme}://")
    return url


def _pool(settings: FetchSettings, url: SplitResult) -> urllib3.PoolManager:
    """Connections to `url`, through the proxy that the environment names, if any."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=settings.timeout_s, read=settings.timeout_s),
        "retries": urllib3.Retry(
            None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS_MAX
        ),
        "ca_certs": os.environ.get("SSL_CERT_FILE") or certifi.where(),
    }
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _http(settings: FetchSettings, url: SplitResult) -> Callable[[], Any]:
    pool = _pool(settings, url)
    headers = urllib3.util.make_headers(basic_auth=_user(url)) if url.username else {}
    plain = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    return lambda: pool.request("GET", plain, headers=headers, preload_content=False)


def _user(url: SplitResult) -> str:
    return f"{unquote(url.username or '')}:{unquote(url.password or '')}"


def _s3(settings: FetchSettings, url: SplitResult, environ: Mapping[str, str]) -> Callable[[], Any]:
    bucket, key = url.netloc, url.path.lstrip("/")
    endpoint = urlsplit(settings.s3_endpoint)
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc or endpoint.path.strip("/"):
        raise SettingsError(
            f"PROA_FETCH_S3_ENDPOINT={settings.s3_endpoint!r} is not http:// or https:// with a"
            " host and nothing after it"
        )
    if not key:
        raise SettingsError("PROA_FETCH_URL: s3://BUCKET/KEY lacks the key")
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(access) != bool(secret):
        raise SettingsError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together; one is empty")
    client = Minio(
        endpoint=endpoint.netloc,
        access_key=access or None,
        secret_key=secret or None,
        session_token=environ.get("AWS_SESSION_TOKEN") or None,
        secure=endpoint.scheme == "https",
        region=settings.s3_region,
        http_client=_pool(settings, endpoint),
    )
    return lambda: client.get_object(bucket_name=bucket, object_name=key)
