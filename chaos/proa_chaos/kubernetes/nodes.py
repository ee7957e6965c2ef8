"""Nodes of the cluster: cordoned with an owner and an end, so that anybody can undo it later.

No right in a namespace is enough for that, and nothing in Kubernetes ends a cordon by itself: who
cordons notes until when in an annotation, and the next runner lifts what a dead one left.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from proa.cluster.connection import Call, Connection
from proa.errors import BadAnswer

log = logging.getLogger(__name__)

ANNOTATION = "proa.dev/chaos-cordon"
NODES_MAX = 5000


class Nodes:
    """`owner`: of our cordons, unique for a run. Errors: those of `Connection.answer`."""

    def __init__(self, connection: Connection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

    async def check(self, name: str) -> None:
        """Whether we may look at it at all."""
        await self._get(name)

    async def cordon(self, name: str, ttl_s: float) -> bool:
        """Let nothing new be scheduled there, for `ttl_s` if somebody looks then. False: it was
        cordoned already, and stays so."""
        if _part(await self._get(name), "spec").get("unschedulable"):
            return False
        note = json.dumps({"owner": self._owner, "until": round(time.time() + ttl_s)})
        await self._patch(name, note, cordoned=True)
        return True

    async def uncordon(self, name: str) -> None:
        """Undo our `cordon`. What somebody else cordoned stays so."""
        if _note(await self._get(name)).get("owner") == self._owner:
            await self._patch(name, None, cordoned=None)

    async def sweep(self) -> list[str]:
        """Undo the cordons of runs that died, once their time is up. The nodes' names."""
        listed = await self._connection.answer(
            Call("list", "", "nodes", "", query={"limit": str(NODES_MAX)})
        )
        items = listed.get("items")
        if not isinstance(items, list):
            raise BadAnswer("the list of nodes has no items")
        found = []
        for item in items:
            name, until = str(_part(item, "metadata").get("name")), _note(item).get("until")
            if isinstance(until, int | float) and until < time.time():
                await self._patch(name, None, cordoned=None)
                found.append(name)
                log.warning("node %s was left cordoned by a run that died; uncordoned", name)
        return found

    async def _get(self, name: str) -> Mapping[str, Any]:
        return await self._connection.answer(Call("get", "", "nodes", "", name))

    async def _patch(self, name: str, note: str | None, *, cordoned: bool | None) -> None:
        meta = {"annotations": {ANNOTATION: note}}  # null removes
        body = {"metadata": meta, "spec": {"unschedulable": cordoned}}
        await self._connection.answer(Call("patch", "", "nodes", "", name, body=body))


def _note(node: Any) -> Mapping[str, Any]:
    """What a cordon of ours says; empty where there is none."""
    text = _part(_part(node, "metadata"), "annotations").get(ANNOTATION)
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _part(item: Any, key: str) -> Mapping[str, Any]:
    found = item.get(key) if isinstance(item, Mapping) else None
    return found if isinstance(found, Mapping) else {}
