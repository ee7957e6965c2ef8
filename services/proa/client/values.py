"""What a client gets back: plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from proa.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class Answer:
    """The outputs for one query, by name, and where they come from.

    outputs: arrays with batch axis, dtypes as the model declares; read-only views, copy to change.
    source: worker, retry, replica, hedge, backup or reconstructed; empty from a server that is not
    proa. group: id of the coding group, if the query was in one. worker: who answered, if one did.
    abft: `ok` or `repaired`, where that worker checks its products (docs/abft.md), `failed` where
    the spec wants such answers; else None.
    """

    outputs: Mapping[str, NDArray[Any]]
    source: str = ""
    group: int | None = None
    worker: str | None = None
    model: str = ""
    version: str = ""
    abft: str | None = None

    @property
    def reconstructed(self) -> bool:
        """The outputs are an approximation, decoded from other answers; `exact=True` refuses it."""
        return self.source == "reconstructed"

    @property
    def only(self) -> NDArray[Any]:
        """The output of a model that has one. Errors: InvalidRequest."""
        if len(self.outputs) != 1:
            raise InvalidRequest(f"model {self.model!r} has outputs {list(self.outputs)}: name one")
        return next(iter(self.outputs.values()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Errors: InvalidRequest names the outputs there are."""
        if name not in self.outputs:
            raise InvalidRequest(
                f"no output {name!r}; model {self.model!r} answered {list(self.outputs)}"
            )
        return self.outputs[name]


@dataclass(frozen=True)
class ModelInfo:
    """A model that the server lists. state: as the server says, `READY` or else; reason: why."""

    name: str
    version: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        return self.state == "READY"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that a model declares. dtype: protocol name, as FP32; shape: -1 is any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
