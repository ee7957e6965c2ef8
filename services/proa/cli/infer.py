"""proa infer."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa.cli.common import OK, Verbs, add_run_dir, add_verb, emit, integer, say
from proa.cli.security import add_security, tls_of, token_of
from proa.errors import InvalidRequest
from proa.spec.types import POLICIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from proa.client import Answer, Metadata

    Arrays = Mapping[str, NDArray[Any]]

_VARIABLE_AXIS = 1  # what a random query takes for an axis of any length


def register(verbs: Verbs) -> None:
    parser = add_verb(verbs, "infer", _run, "send one query and show the answer and its source")
    parser.add_argument("model", metavar="MODEL")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument(
        "--input", type=Path, metavar="FILE",
        help=".npy for a model with one input, or .npz with arrays by input name; a missing batch"
        " axis is added",
    )  # fmt: skip
    query.add_argument("--random", action="store_true", help="a random query of the right shape")
    parser.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, help="of --random (default: %(default)s)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--exact", action="store_true", help="refuse a reconstructed answer")
    which.add_argument(
        "--reconstruct", action="store_true", help="a drill: be answered as if the worker had died"
    )
    parser.add_argument("--policy", choices=POLICIES, help="instead of the spec's")
    parser.add_argument("--deadline-s", type=float, metavar="S", help="give up after so long")
    parser.add_argument("--output", type=Path, metavar="FILE", help="save the outputs as .npz")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a frontend (default: the one in --run-dir)"
    )
    add_run_dir(parser)
    add_security(parser)


def _run(args: argparse.Namespace) -> int:
    from proa.client import Client
    from proa.local.run_file import read_run

    address = args.address or read_run(args.run_dir).address
    with Client(
        address,
        deadline_s=args.deadline_s,
        exact=args.exact,
        policy=args.policy,
        tls=tls_of(args),
        token=token_of(args),
    ) as proa:
        metadata = proa.metadata(args.model)
        arrays = _random(metadata, args.seed) if args.random else _read(args.input, metadata)
        began = time.monotonic()
        answer = proa.infer(args.model, arrays, reconstruct=args.reconstruct)
        latency_ms = (time.monotonic() - began) * 1000.0
    if args.output is not None:
        _save(args.output, answer)
    if args.json:
        emit(_to_json(answer, latency_ms))
    else:
        _show(answer, latency_ms)
    return OK


def _read(path: Path, metadata: Metadata) -> Arrays:
    """Arrays with batch axis by input name. Raises InvalidRequest for what is no such file."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"--input {path}: not an .npy or .npz file: {exc}") from exc
    if isinstance(found, np.ndarray):
        if len(metadata.inputs) != 1:
            names = ", ".join(tensor.name for tensor in metadata.inputs)
            raise InvalidRequest(
                f"--input {path}: the model has several inputs; save an .npz with {names}"
            )
        arrays = {metadata.inputs[0].name: found}
    else:
        arrays = {name: found[name] for name in found.files}
    axes = {tensor.name: len(tensor.shape) for tensor in metadata.inputs}
    return {
        name: array[np.newaxis] if array.ndim == axes.get(name, 0) - 1 else array
        for name, array in arrays.items()
    }


def _random(metadata: Metadata, seed: int) -> Arrays:
    """One query: numbers in [0, 1), or small integers."""
    import numpy as np

    from proa.wire import DTYPES

    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in metadata.inputs:
        if tensor.dtype == "BYTES":
            raise InvalidRequest(f"--random: input {tensor.name!r} is of BYTES; use --input")
        shape = [size if size > 0 else _VARIABLE_AXIS for size in tensor.shape]
        whole = "INT" in tensor.dtype or tensor.dtype == "BOOL"
        values = rng.integers(0, 2, shape) if whole else rng.random(shape)
        arrays[tensor.name] = values.astype(DTYPES[tensor.dtype])
    return arrays


def _save(path: Path, answer: Answer) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **dict(answer.outputs))


def _show(answer: Answer, latency_ms: float) -> None:
    import numpy as np

    notes = [f"source {answer.source}"] if answer.source else []
    notes += [f"worker {answer.worker}"] if answer.worker else []
    notes += [f"group {answer.group}"] if answer.group is not None else []
    notes += [f"matrix products {answer.abft}"] if answer.abft is not None else []
    say(f"{answer.model}  {', '.join([*notes, f'{latency_ms:.1f} ms'])}")
    if answer.reconstructed:
        say("an approximation, decoded from other answers; --exact refuses it")
    for name, array in answer.outputs.items():
        say(f"{name}  {array.dtype} {list(array.shape)}")
        say(np.array2string(array, precision=4, suppress_small=True, threshold=200))


def _to_json(answer: Answer, latency_ms: float) -> dict[str, Any]:
    return {
        "model": answer.model,
        "version": answer.version,
        "source": answer.source,
        "worker": answer.worker,
        "group": answer.group,
        "abft": answer.abft,
        "latency_ms": round(latency_ms, 3),
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tolist()}
            for name, array in answer.outputs.items()
        },
    }
