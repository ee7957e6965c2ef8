"""The coordinator's state in a ConfigMap, replaced as a whole, by one writer at a time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from proa.cluster import ApiAccess
from proa.cluster.connection import ApiError, Call, Connection
from proa.errors import BadAnswer, InvalidRequest, Unavailable

KEY = "state.json"
SAVE_S_MAX = 4.0  # less than the Lease lasts: see `tenure`
RETRY_S = 0.2
STATE_BYTES_MAX = 1_000_000  # Kubernetes takes 1 MiB, names and labels included
CONFLICT = 409

T = TypeVar("T")


class ConfigMapState:
    """The ConfigMap `name` of our namespace, which must be there. Its calls block, as those of a
    file do: a loop of its own, in a thread, speaks to the API server.

    Errors: Unavailable (also: somebody else wrote), InvalidRequest (it is no state of ours).
    """

    def __init__(self, api: ApiAccess, name: str, *, save_s_max: float = SAVE_S_MAX) -> None:
        self._api, self._name, self._save_s_max = api, name, save_s_max
        self._found: Mapping[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="state", daemon=True)
        self._thread.start()

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None: nothing ever was."""
        self._run(self._read())
        text = _text(self._found)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except ValueError as exc:
            raise InvalidRequest(
                f"ConfigMap {self._name}: not a coordinator's state: {exc}"
            ) from exc
        if not isinstance(found, dict):
            raise InvalidRequest(f"ConfigMap {self._name}: not a coordinator's state")
        return found

    def save(self, state: Mapping[str, Any]) -> None:
        """With the API server when it returns."""
        text = json.dumps(state, separators=(",", ":"))
        if len(text) > STATE_BYTES_MAX:
            raise Unavailable(
                f"ConfigMap {self._name}: a state of {len(text)} bytes is above the limit of"
                f" {STATE_BYTES_MAX}: fewer tables or shards"
            )
        self._run(self._write(text))

    def close(self) -> None:
        """No more calls."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def limited() -> T:
            try:
                async with asyncio.timeout(self._save_s_max):
                    return await work
            except TimeoutError:
                raise Unavailable(
                    f"ConfigMap {self._name}: no answer within {self._save_s_max:g} s"
                ) from None

        return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()

    async def _read(self) -> None:
        async with Connection(self._api) as connection:
            while True:
                try:
                    self._found = await connection.answer(self._call("get"))
                except (Unavailable, BadAnswer) as exc:
                    await _pause(exc)
                else:
                    return

    async def _write(self, text: str) -> None:
        fresh = {**self._found, "data": {KEY: text}}
        async with Connection(self._api) as connection:
            while True:
                try:
                    self._found = await connection.answer(self._call("update", fresh))
                except ApiError as exc:
                    if exc.code != CONFLICT:
                        await _pause(exc)
                        continue
                    self._found = await connection.answer(self._call("get"))
                    if _text(self._found) != text:  # else it was us, and the answer got lost
                        raise Unavailable(
                            f"ConfigMap {self._name}: another coordinator wrote to it"
                        ) from exc
                except (Unavailable, BadAnswer) as exc:
                    await _pause(exc)
                    continue
                return

    def _call(self, verb: str, body: Mapping[str, Any] | None = None) -> Call:
        return Call(verb, "", "configmaps", self._api.namespace, self._name, body=body)


def _text(found: Mapping[str, Any]) -> str | None:
    data = found.get("data")
    text = data.get(KEY) if isinstance(data, Mapping) else None
    return text if isinstance(text, str) else None


async def _pause(exc: Unavailable | BadAnswer) -> None:
    """Before the next try. Errors: `exc` where that does not help."""
    if isinstance(exc, ApiError) and exc.code != 429 and exc.code < 500:
        raise exc
    await asyncio.sleep(RETRY_S)
