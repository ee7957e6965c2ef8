"""The served models: they come, change and go while requests are under way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from proa.dispatch import Engine
from proa.dispatch import events as ev
from proa.errors import ProaError, UnknownModel
from proa.frontend.membership import View
from proa.frontend.metrics import Recent
from proa.frontend.nursery import Nursery
from proa.frontend.pool import Pool
from proa.frontend.queries import CheckedQuery
from proa.frontend.shell import Result, Shell
from proa.frontend.stories import Story
from proa.spec import CodedModel

log = logging.getLogger(__name__)

POLL_S = 0.05
# A new version takes over once all of its workers have been tried, or so long after the first.
SETTLE_S_MAX = 2.0


class Model:
    """One version of a model that this frontend serves."""

    def __init__(self, spec: CodedModel, shell: Shell, pool: Pool, recent: Recent) -> None:
        self.spec = spec
        self.shell = shell
        self.pool = pool
        self.recent = recent
        self._open = 0
        self._frontends = (1, 0)

    @property
    def ready(self) -> bool:
        """Whether any worker can answer for it."""
        return self.pool.ready.is_set()

    @property
    def open(self) -> int:
        """Queries without an answer."""
        return self._open

    async def infer(
        self, query: CheckedQuery, deadline: float, story: Story | None = None
    ) -> Result:
        """As `Shell.infer`."""
        self._open += 1
        try:
            return await self.shell.infer(query, deadline, story)
        finally:
            self._open -= 1

    def see(self, view: View) -> None:
        """Take in who is where."""
        self.pool.update(view.workers_of(self.spec), self.shell)
        if self._frontends != (view.frontends, view.index):
            self._frontends = (view.frontends, view.index)
            self.shell.report(ev.FrontendsChanged(view.frontends, view.index))

    async def close(self) -> None:
        """Stop everything that runs for this version."""
        self.pool.close()
        await self.shell.close()


# Makes a model of a spec, to take over from another version, if there is one.
Build = Callable[[CodedModel, Model | None], Model]


class Models:
    """The served models, `by_name`, of `specs`. `ready_when`: with `all`, ready while all have a
    worker; with `any`, while one has. A model that comes later counts from its first worker on."""

    def __init__(
        self,
        build: Build,
        nursery: Nursery,
        *,
        ready_when: str = "all",
        on_error: Callable[[str], None] = lambda _text: None,
        on_count: Callable[[Mapping[str, int]], None] = lambda _counts: None,
    ) -> None:
        self.by_name: dict[str, Model] = {}
        self._build = build
        self._nursery = nursery
        self._ready_when = ready_when
        self._on_error = on_error
        self._on_count = on_count
        self._view = View()
        self.specs: dict[str, CodedModel] = {}
        self._refused: dict[str, CodedModel] = {}
        self._next: dict[str, tuple[Model, asyncio.Task[None]]] = {}
        self._leaving: set[Model] = set()
        self._latecomers: set[str] = set()

    def get(self, name: str) -> Model:
        """The model `name`. Errors: UnknownModel, naming those there are."""
        found = self.by_name.get(name)
        if found is None:
            raise UnknownModel(f"model {name[:64]!r} is unknown; served: {', '.join(self.by_name)}")
        return found

    @property
    def ready(self) -> bool:
        """Whether this frontend should get requests."""
        models = self.by_name.items()
        self._latecomers -= {name for name, model in models if model.pool.was_ready}
        if self._ready_when == "any":
            return any(model.ready for _, model in models)
        counted = [model.ready for name, model in models if name not in self._latecomers]
        return bool(counted) and all(counted)

    def see(self, view: View) -> None:
        """Tell all models, those that start or leave as well, who is where."""
        self._view = view
        starting = [model for model, _ in self._next.values()]
        for model in (*self.by_name.values(), *starting, *self._leaving):
            model.see(view)

    def serve(self, specs: Mapping[str, CodedModel]) -> None:
        """Serve these and no others: the new ones at once, the changed ones as soon as their new
        version has workers. Removed ones take no new queries and finish those they have."""
        first = not self.specs
        for name in self.specs.keys() - specs.keys():
            self._remove(name)
        for name, spec in specs.items():
            if spec in (self.specs.get(name), self._refused.get(name)):
                continue
            try:
                self._put(spec)
            except ProaError as exc:
                self._refused[name] = spec
                self._on_error(f"model {name}: {exc}")
                continue
            self._refused.pop(name, None)
            if not first and name not in self.specs:
                self._latecomers.add(name)
            self.specs[name] = spec
        self._count()

    def engines(self) -> dict[str, Engine]:
        """The engines that take queries by model; for any thread."""
        return {name: model.shell.engine for name, model in list(self.by_name.items())}

    async def close(self) -> None:
        """Stop all models."""
        await self._nursery.close()
        starting = [model for model, _ in self._next.values()]
        for model in (*self.by_name.values(), *starting, *self._leaving):
            await model.close()

    def _put(self, spec: CodedModel) -> None:
        name = spec.name
        self._drop_next(name)
        before = self.by_name.get(name)
        if before is not None and before.spec == spec:
            return
        model = self._build(spec, before)
        model.see(self._view)
        if before is None:
            self.by_name[name] = model
            log.info("model added model=%s", name)
        else:
            task = self._nursery.start(self._take_over(model, before))
            self._next[name] = (model, task)
            log.info("model changed model=%s", name)

    async def _take_over(self, model: Model, before: Model) -> None:
        """Nothing is lost: `before` serves until `model` can."""
        first_s: float | None = None
        # One that never had a worker has nothing to lose; one that has none now may get it back.
        while before.pool.was_ready:
            now = time.monotonic()
            if model.ready:
                first_s = first_s or now
                settled = model.pool.tried or now - first_s > SETTLE_S_MAX
                if settled or not before.ready:
                    break
            await asyncio.sleep(POLL_S)
        name = model.spec.name
        del self._next[name]
        self.by_name[name] = model
        log.info("model takes its new spec model=%s", name)
        self._retire(before)
        self._count()

    def _remove(self, name: str) -> None:
        self._drop_next(name)
        del self.specs[name]
        self._latecomers.discard(name)
        log.info("model removed model=%s", name)
        self._retire(self.by_name.pop(name))

    def _drop_next(self, name: str) -> None:
        """A version that never took over has no queries."""
        if name in self._next:
            model, task = self._next.pop(name)
            task.cancel()
            self._retire(model)

    def _retire(self, model: Model) -> None:
        self._leaving.add(model)
        self._nursery.start(self._finish(model))

    async def _finish(self, model: Model) -> None:
        while model.open:  # noqa: ASYNC110  # every query has a deadline
            await asyncio.sleep(POLL_S)
        await model.close()
        self._leaving.discard(model)
        if model.spec.name not in self.by_name:
            model.pool.disconnect()
        log.info("model version closed model=%s", model.spec.name)
        self._count()

    def _count(self) -> None:
        self._on_count(
            {
                "serving": len(self.by_name),
                "starting": len(self._next),
                "leaving": len(self._leaving),
            }
        )
