"""Calls to the Kubernetes API: one border for its errors, limits on what it may send.

Raw JSON through the client's REST layer, not its models: those refuse what a newer API server may
send, and its Watch goes on after errors on its own terms (410 from the same version, no backoff).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

from proa import __version__
from proa.cluster.api import ApiAccess
from proa.errors import BadAnswer, Unavailable

METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
MERGE_PATCH = "application/merge-patch+json"
ANSWER_BYTES_MAX = 32 << 20
REFUSAL_BYTES_MAX = 16 << 10
LINE_BYTES_MAX = 4 << 20  # etcd keeps objects up to 1.5 MiB
CONNECT_S = 5.0
CALL_S = 15.0

_USER = re.compile(r'User "([^"\s]{1,253})"')


class ApiError(Unavailable):
    """The API server refused a call. `code`: HTTP status; `retry_after_s`: what it asked for."""

    def __init__(self, message: str, *, code: int, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Call:
    """What is asked of the API: `verb` as RBAC names it, a patch is a merge patch. `group`: empty
    for core. `resource`: as RBAC names it too, so with a subresource, `pods/eviction`; empty: what
    the group has. `namespace`: empty for what is of the cluster, such as nodes."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    version: str = "v1"

    @property
    def path(self) -> str:
        resource, _, sub = self.resource.partition("/")
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespace:
            base += f"/namespaces/{quote(self.namespace, safe='')}"
        if resource:
            base += f"/{resource}"
        named = f"{base}/{quote(self.name, safe='')}" if self.name else base
        return f"{named}/{sub}" if sub else named


class Connection:
    """One client of the API server, made anew where its credentials or the server were lost."""

    def __init__(self, access: ApiAccess) -> None:
        self._access = access
        self._client: Any = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._forget()

    async def answer(self, call: Call) -> Mapping[str, Any]:
        """The JSON object that answers `call`. Errors: ApiError, Unavailable, BadAnswer."""
        async with self._response(call, total_s=CALL_S) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise BadAnswer(f"{call.path} is longer than the limit of {ANSWER_BYTES_MAX} B")
            return parse(bytes(body))

    async def lines(self, call: Call, *, silent_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of a watch until the server ends it. Errors: as `answer`; Unavailable once
        nothing came for `silent_s`."""
        async with self._response(call, silent_s=silent_s) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield line
                if len(rest) > LINE_BYTES_MAX:
                    raise BadAnswer(f"a watch event is longer than {LINE_BYTES_MAX} B")

    @contextlib.asynccontextmanager
    async def _response(
        self, call: Call, *, total_s: float | None = None, silent_s: float | None = None
    ) -> AsyncIterator[Any]:
        import aiohttp  # comes with kubernetes

        limits = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, sock_read=silent_s)
        response: Any = None
        try:
            response = await self._send(call, limits)
            if response.status == 401:  # the token may have been rotated: once more with a new one
                response.close()
                await self._forget()
                response = await self._send(call, limits)
            if response.status >= 400:
                raise await self._refused(call, response)
            yield response
        except (aiohttp.ClientError, OSError) as exc:  # timeouts are OSErrors
            server, silent = self._server(), f"it said nothing for {silent_s or total_s:g} s"
            await self._forget()
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                silent = f"no connection within {CONNECT_S:g} s"
            why = silent if isinstance(exc, TimeoutError) else _brief(exc)
            raise Unavailable(f"the API server {server}: {why}") from exc
        finally:
            if response is not None:
                response.close()

    async def _send(self, call: Call, limits: Any) -> Any:
        """The response once its head is here."""
        if self._client is None:
            from kubernetes.aio.client import ApiClient

            self._client = ApiClient(await self._access.configure())
            self._client.user_agent = f"proa/{__version__}"
        head = {"Accept": "application/json"}
        if call.verb == "patch":
            head["Content-Type"] = MERGE_PATCH
        method, url, headers, body, _ = await self._client.param_serialize(
            METHODS[call.verb],
            call.path,
            query_params=sorted((call.query or {}).items()),
            header_params=head,
            body=dict(call.body) if call.body else None,
            auth_settings=["BearerToken"],
        )
        sent = await self._client.call_api(method, url, headers, body, _request_timeout=limits)
        return sent.response

    async def _refused(self, call: Call, response: Any) -> ApiError:
        text = (await response.content.read(REFUSAL_BYTES_MAX)).decode("utf-8", "replace")
        status: Mapping[str, Any] = {"message": text}
        with contextlib.suppress(BadAnswer):
            status = parse(text.encode())
        after = response.headers.get("Retry-After", "")
        wait_s = float(after) if after.isdecimal() and len(after) < 7 else 0.0
        return self.refusal(call, {**status, "code": response.status}, retry_after_s=wait_s)

    def refusal(self, call: Call, status: Any, *, retry_after_s: float = 0.0) -> ApiError:
        """The error that a Status object tells, in the body of a refusal or in a watch."""
        found = status if isinstance(status, Mapping) else {}
        code = found.get("code")
        code = code if isinstance(code, int) else 500
        text = explain(
            call, code, str(found.get("message")), server=self._server(), who=self._access.source
        )
        return ApiError(text, code=code, retry_after_s=retry_after_s)

    def _server(self) -> str:
        host = self._client.configuration.host if self._client else self._access.source
        return str(host)

    async def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def parse(text: bytes) -> Mapping[str, Any]:
    """A JSON object. Errors: BadAnswer."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadAnswer(f"the API server sent {text[:60]!r}, which is not JSON") from exc
    if not isinstance(found, dict):
        raise BadAnswer(f"the API server sent {text[:60]!r}, which is not an object")
    return found


def explain(call: Call, code: int, message: str, *, server: str, who: str) -> str:
    """What a refusal means, with what to change where that is known."""
    group = call.group or "core"
    where = f"in namespace {call.namespace}" if call.namespace else "of the cluster"
    role = "Role" if call.namespace else "ClusterRole"
    what = f"{call.verb} {call.resource} (API group {group}) {where}"
    if code == 403:
        found = _USER.search(message)
        user = found[1] if found else who
        return f"{user} may not {what}: a {role} must grant it (the API server {server} says 403)"
    if code == 401:
        return f"the API server {server} does not accept the token of {who} (401)"
    return f"the API server {server} refused to {what}: {code} {' '.join(message.split())[:300]}"


def _brief(exc: BaseException) -> str:
    why = getattr(exc, "certificate_error", None) or getattr(exc, "strerror", None) or exc
    return " ".join(str(why).split())[:300] or type(exc).__name__
