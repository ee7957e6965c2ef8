"""Where model files come from: an HTTP server, or a bucket of any S3 service."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import urllib3

from proa.cluster.buckets import connect, pool, refusal, s3_errors
from proa.cluster.settings import FetchSettings
from proa.errors import SettingsError, Unavailable

_CHUNK_BYTES = 1 << 16
_OK = 200


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
        with s3_errors(self.shown, "PROA_FETCH_URL"):
            response = self._start()
            try:
                if response.status != _OK:
                    raise refusal(self.shown, response.status, str(response.reason))
                while piece := response.read1(_CHUNK_BYTES, decode_content=False):
                    yield piece
                if response.length_remaining:  # read1 does not look
                    raise Unavailable(f"{self.shown}: the connection ended before the archive did")
            finally:
                response.close()


def _split(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as exc:
        raise SettingsError(f"PROA_FETCH_URL: {exc}") from exc
    if url.scheme in ("http", "https", "s3") and not url.hostname:
        raise SettingsError(f"PROA_FETCH_URL: no host or bucket after {url.scheme}://")
    return url


def _http(settings: FetchSettings, url: SplitResult) -> Callable[[], Any]:
    connections = pool(url, settings.timeout_s)
    headers = urllib3.util.make_headers(basic_auth=_user(url)) if url.username else {}
    plain = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    return lambda: connections.request("GET", plain, headers=headers, preload_content=False)


def _user(url: SplitResult) -> str:
    return f"{unquote(url.username or '')}:{unquote(url.password or '')}"


def _s3(settings: FetchSettings, url: SplitResult, environ: Mapping[str, str]) -> Callable[[], Any]:
    bucket, key = url.netloc, url.path.lstrip("/")
    if not key:
        raise SettingsError("PROA_FETCH_URL: s3://BUCKET/KEY lacks the key")
    client = connect(
        settings.s3_endpoint, settings.s3_region, environ, settings.timeout_s,
        "PROA_FETCH_S3_ENDPOINT",
    )  # fmt: skip
    return lambda: client.get_object(bucket_name=bucket, object_name=key)
