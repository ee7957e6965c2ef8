"""Vetting of `.pt2` archives, before torch sees a byte of them.

A `.pt2` is a zip of raw tensors and a JSON graph, but torch's loader is not a safe parser: it
unpickles sample inputs, custom objects and old-style weights; it evaluates symbolic sizes with
sympy, which is Python's `eval`; it resolves operators by walking attributes of `torch`; and it
turns node names, guards and stack traces into source code that it executes. So nothing is passed
on that is not on a list here, and torch is handed a new archive written from the vetted members:
no second parser, no second opinion.

No torch in this module.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from proa.errors import ProgramRefused

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_FIXED = frozenset({MODEL, WEIGHTS, CONSTANTS, "archive_format", "archive_version"})
# Written by every torch, needed by none of the readers.
_IGNORED = frozenset({"byteorder", ".data/version", "version", ".data/serialization_id"})
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,9}")

_PLAIN = re.compile(r"[\w.+-]{0,256}", re.ASCII)
_IDENTIFIER = re.compile(r"([A-Za-z_]\w{0,255})?", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|proa)\.(?!__)\w+\.\w+"
    r"|torch\.ops\.aten\.__(and|or|xor|lshift|rshift)__\.\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(int|float|max|min|ite|not|sum)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc)",
    re.ASCII,
)
# Operators of aten that reach outside the process.
_OUTSIDE = frozenset({"from_file", "save", "load", "warn", "print", "hash", "eval", "format"})
# What torch writes sizes with: `Mul(Integer(2), Symbol('s77', positive=True, integer=True))`.
_CALLS = frozenset(
    (
        *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Abs", "Max", "Min"),
        *("Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv"),
        *("ceiling", "floor", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat"),
        *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
        *("GreaterThan", "And", "Or", "Not", "Where", "Identity", "ModularIndexing"),
        *("PowByNatural",),
    )
)
_POWERS = frozenset({"Pow", "PowByNatural"})
_MATHS = (ast.Expression, ast.UnaryOp, ast.unaryop, ast.Name, ast.Load, ast.Call, ast.keyword)
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may weigh. Beyond: ProgramRefused, naming the limit."""

    bytes_max: int = 4 << 30  # file, and all members together: they are stored, not compressed
    members_max: int = 16_384  # one a weight: a 500-layer network has about 2,000
    json_bytes_max: int = 64 << 20


@dataclass(frozen=True)
class VettedArchive:
    """`members`: what torch may read, by path in the archive. `sample_inputs`: a pickle."""

    members: Mapping[str, bytes]
    sample_inputs: bytes


def read_archive(content: bytes, limits: ArchiveLimits) -> VettedArchive:
    """Take a `.pt2` apart and keep only what passes. Raises ProgramRefused, saying what did not."""
    members = _read_members(content, limits)
    for name in sorted(_FIXED - members.keys()):
        raise ProgramRefused(f"not an exported torch program: {name} is missing from the archive")
    if members["archive_format"] != b"pt2":
        raise ProgramRefused("not an exported torch program: archive_format is not 'pt2'")
    sample_inputs = members.pop(SAMPLE_INPUTS, b"")
    vetted = {name: data for name, data in members.items() if name not in _IGNORED}
    vetted[MODEL] = _vet_json(vetted[MODEL], MODEL, limits, _vet_program)
    for config in (WEIGHTS, CONSTANTS):
        vet = partial(_vet_payloads, config=config, members=vetted)
        vetted[config] = _vet_json(vetted[config], config, limits, vet)
    vetted[SAMPLE_INPUTS] = b""  # torch reads "none" from an empty record, without a pickle
    return VettedArchive(vetted, sample_inputs)


def _read_members(content: bytes, limits: ArchiveLimits) -> dict[str, bytes]:
    """Members by path below the archive's one root folder. zipfile checks each one's CRC."""
    if len(content) > limits.bytes_max:
        raise ProgramRefused(f"{len(content)} bytes; the limit is {limits.bytes_max}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > limits.members_max:
                raise ProgramRefused(
                    f"{len(entries)} members in the archive; the limit is {limits.members_max}"
                )
            if sum(entry.file_size for entry in entries) > limits.bytes_max:
                raise ProgramRefused(f"members exceed the limit of {limits.bytes_max} bytes")
            members: dict[str, bytes] = {}
            roots: set[str] = set()
            for entry in entries:
                root, name = _vet_entry(entry)
                roots.add(root)
                if name in members or len(roots) > 1:
                    raise ProgramRefused(f"member {entry.filename!r} is there twice")
                members[name] = archive.read(entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as exc:
        raise ProgramRefused(f"the archive is damaged: {exc}") from exc
    return members


def _vet_entry(entry: zipfile.ZipInfo) -> tuple[str, str]:
    root, _, name = entry.filename.partition("/")
    known = name in _FIXED or name in _IGNORED or name == SAMPLE_INPUTS or _TENSOR.fullmatch(name)
    if not known or not _PLAIN.fullmatch(root) or root.startswith("."):
        raise ProgramRefused(
            f"member {entry.filename!r} is not allowed: only graph, raw tensors and sample inputs"
            " of one exported program are (no custom objects, compiled code or extra files)"
        )
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
        raise ProgramRefused(f"member {entry.filename!r} is compressed or encrypted")
    return root, name


def _vet_json(
    data: bytes, name: str, limits: ArchiveLimits, vet: Callable[[dict[str, Any]], None]
) -> bytes:
    if len(data) > limits.json_bytes_max:
        raise ProgramRefused(f"{name}: {len(data)} bytes; the limit is {limits.json_bytes_max}")
    try:
        tree = json.loads(data)
        vet(tree)
    except ProgramRefused as exc:
        raise ProgramRefused(f"{name}: {exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ProgramRefused(f"{name}: not what torch.export writes ({exc!r})") from exc
    return json.dumps(tree).encode()


def _vet_program(tree: dict[str, Any]) -> None:
    # Guards are Python source that torch would execute. The backend checks shapes itself.
    tree["guards_code"] = []
    graph = tree["graph_module"]
    graph["metadata"] = {}
    graph["treespec_namedtuple_fields"] = {}
    _vet_value("", tree)


def _vet_value(key: str, value: Any) -> None:
    """Every string of the graph, by the key it stands under; node metadata is emptied."""
    if isinstance(value, dict):
        if "target" in value and "metadata" in value:
            value["metadata"] = {}
        for name, child in value.items():
            _vet_plain("a key", name)
            _vet_value(name, child)
    elif isinstance(value, list):
        if key == "as_strings":
            return
        for child in value:
            _vet_value(key, child)
    elif isinstance(value, str):
        _STRINGS.get(key, _vet_plain)(key, value)


def _vet_plain(key: str, text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise ProgramRefused(f"{key} = {text[:80]!r}: odd characters")


def _vet_name(key: str, text: str) -> None:
    # torch writes node names into source code as they are.
    if not _IDENTIFIER.fullmatch(text) or keyword.iskeyword(text):
        raise ProgramRefused(f"{key} = {text[:80]!r} is not an identifier")


def _vet_target(key: str, text: str) -> None:
    if not _OPERATOR.fullmatch(text) or text.split(".")[-2] in _OUTSIDE:
        raise ProgramRefused(f"{key} = {text[:80]!r} is not an operator we run")


def _vet_text(_key: str, _text: str) -> None:
    """A string argument of an operator: data, which torch writes into source code with repr()."""


def _vet_tree(key: str, text: str) -> None:
    """A pytree spec: tuples, lists and dicts only. Others import modules by name."""
    if not text:
        return
    version, root = json.loads(text)
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if version != 1 or node["type"] not in _TREE_TYPES:
            raise ProgramRefused(f"{key}: container {str(node['type'])[:80]!r} is not allowed")
        nodes.extend(node["children_spec"])


def _vet_expression(key: str, text: str) -> None:
    """A symbolic size: calls of sympy's constructors on names and numbers. sympy evaluates it."""
    refused = ProgramRefused(f"{key} = {text[:80]!r} is not plain arithmetic")
    if len(text) > 4000:
        raise refused
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, RecursionError) as exc:
        raise refused from exc
    if not all(_is_arithmetic(node) for node in nodes):
        raise refused


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # the name in Symbol('s77')
            return _PLAIN.fullmatch(node.value) is not None
        return isinstance(node.value, int | float) and abs(node.value) < 2**63
    if isinstance(node, ast.Call):
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        return function in _CALLS and (function not in _POWERS or _is_small_power(node))
    return isinstance(node, _MATHS)


def _is_small_power(call: ast.Call) -> bool:
    """9**9**9 would never end."""
    match call.args:
        case [_, ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(power))])]:
            return 0 <= power <= 8
        case _:
            return False


_STRINGS: Mapping[str, Callable[[str, str], None]] = {
    "name": _vet_name,
    "as_name": _vet_name,
    "target": _vet_target,
    "expr_str": _vet_expression,
    "in_spec": _vet_tree,
    "out_spec": _vet_tree,
    "as_string": _vet_text,
}


def _vet_payloads(tree: dict[str, Any], config: str, members: Mapping[str, bytes]) -> None:
    """Weights and constants: raw tensors that lie in the archive, never a pickle."""
    folder = config.rsplit("/", 1)[0]
    _vet_value("", tree)
    for name, payload in tree["config"].items():
        path = f"{folder}/{payload['path_name']}"
        if payload["use_pickle"] is not False or not _TENSOR.fullmatch(path):
            raise ProgramRefused(f"{name} needs a pickle; only raw tensors are loaded")
        if path not in members:
            raise ProgramRefused(f"{name}: {path} is missing from the archive")
        sizes = [int(size["as_int"]) for size in payload["tensor_meta"]["sizes"]]
        # torch makes zeros of any size out of an empty record.
        if not members[path] and math.prod(sizes) > 0:
            raise ProgramRefused(f"{name}: {path} is empty")
