"""Tables, ids and rows of the store's service as protobuf, and back."""

from __future__ import annotations

import numpy as np

from proa.api.v1 import store_pb2 as pb
from proa.errors import InvalidRequest
from proa.store.initial import Floats, Ids, Initialiser
from proa.store.optimisers import from_json, to_json
from proa.store.tables import Table

IDS_MAX = 1 << 20


def table_to_proto(table: Table) -> pb.TableSpec:
    """All fields are set, defaults too."""
    given = to_json(table.optimiser)
    kind, nesterov = given.pop("kind"), given.pop("nesterov", False)
    init = table.init.to_json()
    return pb.TableSpec(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        optimiser=pb.OptimiserSpec(kind=kind, parameters=given, nesterov=nesterov),
        init=pb.InitialiserSpec(kind=init.pop("kind"), seed=init.pop("seed"), parameters=init),
    )


def table_from_proto(value: pb.TableSpec) -> Table:
    """Errors: InvalidRequest, which names the field."""
    given = {"kind": value.optimiser.kind, **value.optimiser.parameters}
    if value.optimiser.nesterov:
        given["nesterov"] = True
    try:
        init = Initialiser(
            kind=value.init.kind or "uniform", seed=value.init.seed, **value.init.parameters
        )
    except TypeError as exc:
        raise InvalidRequest(f"init: {exc}") from exc
    return Table(value.name, value.rows, value.dim, from_json(given), init)


def ids_from_bytes(value: bytes, *, what: str = "ids") -> Ids:
    """int64, little-endian. Errors: InvalidRequest."""
    if len(value) % 8:
        raise InvalidRequest(f"{what} has {len(value)} bytes: not of int64")
    if len(value) > 8 * IDS_MAX:
        raise InvalidRequest(f"{what} has {len(value) // 8} ids: more than {IDS_MAX}")
    return np.frombuffer(value, "<i8")


def floats_from_bytes(value: bytes, rows: int, dim: int, *, what: str = "gradients") -> Floats:
    """fp32, little-endian, [rows, dim]. Errors: InvalidRequest."""
    if len(value) != 4 * rows * dim:
        raise InvalidRequest(f"{what} has {len(value)} bytes, not fp32 of {rows} rows, dim = {dim}")
    return np.frombuffer(value, "<f4").reshape(rows, dim)
