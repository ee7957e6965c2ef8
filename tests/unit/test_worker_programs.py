"""Loading programs: what torch would have run, and what we refuse."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.programs import INPUT, Linear, export
from proa.errors import ProgramRefused
from proa.worker import programs
from proa.worker.archive import CONSTANTS, MODEL, SAMPLE_INPUTS, WEIGHTS, ArchiveLimits

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Linear(seed=1, bias=True), tmp_path_factory.mktemp("programs") / "good.pt2")


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {e.filename.partition("/")[2]: archive.read(e) for e in archive.infolist()}


def write(path: Path, members: Members, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"model/{name}", data)
    return path


def edited(members: Members, name: str, edit: Callable[[Any], None]) -> Members:
    tree = json.loads(members[name])
    edit(tree)
    return {**members, name: json.dumps(tree).encode()}


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self._path, "a pickle ran"))


def test_gives_what_torch_gives(good: Path) -> None:
    module = Linear(seed=1, bias=True)
    program = programs.load(good, hashlib.sha256(good.read_bytes()).hexdigest().upper())
    for batch in (1, 2, 4):
        images = torch.randn(batch, *INPUT.shape)
        (found,) = program(images)
        torch.testing.assert_close(found, module(images), rtol=0, atol=0)
        assert not found.requires_grad


def test_a_shape_that_passed_is_computed_alike_and_others_are_still_checked(good: Path) -> None:
    program = programs.load(good, None)
    images = torch.randn(2, *INPUT.shape)
    (first,) = program(images)
    (second,) = program(images)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    for wrong in (images.double(), images[:, :, :3], torch.randn(5, *INPUT.shape)):
        with pytest.raises(Exception, match=r"(?i)shape|dtype|guard|range"):
            program(wrong)


def test_a_changed_weight_changes_every_answer_after(good: Path) -> None:
    program = programs.load(good, None)
    images = torch.ones(1, *INPUT.shape)
    program(images)
    for parameter in program.parameters():
        parameter.data.zero_()
    (found,) = program(images)
    assert found.tolist() == [[0.0, 0.0, 0.0]]


def test_sha256_is_checked_first(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"not even a zip")
    with pytest.raises(ProgramRefused, match=r"x\.pt2: its sha256 is .*, expected 0000"):
        programs.load(tmp_path / "x.pt2", "0" * 64)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match=r"absent\.pt2: cannot be read: No such file"):
        programs.load(tmp_path / "absent.pt2", None)


def pickled(path: Path) -> bytes:
    return pickle.dumps(Touch(path))


def torch_saved(path: Path, folder: Path) -> bytes:
    torch.save((Touch(path),), folder / "evil.pt")
    return (folder / "evil.pt").read_bytes()


EvilCase = Callable[[Members, Path, Path], Members]


def in_sample_inputs(members: Members, mark: Path, folder: Path) -> Members:
    return {**members, SAMPLE_INPUTS: torch_saved(mark, folder)}


def in_weight(members: Members, mark: Path, folder: Path) -> Members:
    def edit(tree: Any) -> None:
        payload = tree["config"]["layer.weight"]
        payload["use_pickle"] = True
        members[f"data/weights/{payload['path_name']}"] = torch_saved(mark, folder)

    return edited(members, WEIGHTS, edit)


def in_legacy_weights(members: Members, mark: Path, folder: Path) -> Members:
    return {**members, "data/weights/model.pt": torch_saved(mark, folder)}


def constant(name: str, data: bytes, members: Members) -> Members:
    def edit(tree: Any) -> None:
        meta = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        tree["config"]["thing"] = meta

    return edited({**members, f"data/constants/{name}": data}, CONSTANTS, edit)


def in_opaque_constant(members: Members, mark: Path, folder: Path) -> Members:
    return constant("opaque_obj_0", pickled(mark), members)


def in_custom_object(members: Members, mark: Path, folder: Path) -> Members:
    return constant("custom_obj_0", torch_saved(mark, folder), members)


def in_tensor_constant(members: Members, mark: Path, folder: Path) -> Members:
    return constant("tensor_0", torch_saved(mark, folder), members)


def in_old_format(members: Members, mark: Path, folder: Path) -> Members:
    evil = torch_saved(mark, folder)
    parts = ("state_dict", "constants", "example_inputs")
    old = {f"serialized_{part}.pt": evil for part in parts}
    return {**old, "serialized_exported_program.json": members[MODEL], "version": b"8.15"}


def in_size_expression(members: Members, mark: Path, folder: Path) -> Members:
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    text = members[MODEL].decode()
    assert "expr_str" in text
    tree = json.loads(text)
    size = tree["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]
    size["as_expr"]["expr_str"] = code
    return {**members, MODEL: json.dumps(tree).encode()}


def node_edit(members: Members, edit: Callable[[Any], None]) -> Members:
    return edited(members, MODEL, lambda tree: edit(tree["graph_module"]["graph"]["nodes"][-1]))


def in_operator(members: Members, mark: Path, folder: Path) -> Members:
    return node_edit(members, lambda node: node.update(target="torch.os.system"))


def in_file_operator(members: Members, mark: Path, folder: Path) -> Members:
    def edit(node: Any) -> None:
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(mark)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 4}, "kind": 1},
        ]

    return node_edit(members, edit)


def in_node_name(members: Members, mark: Path, folder: Path) -> Members:
    code = f"x = open({str(mark)!r}, 'w'); linear"
    text = members[MODEL].decode().replace('"linear"', json.dumps(code))
    return {**members, MODEL: text.encode()}


def in_tree_spec(members: Members, mark: Path, folder: Path) -> Members:
    context = json.dumps({"default_factory_module": "os", "default_factory_name": "system"})
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}

    def edit(tree: Any) -> None:
        call = tree["graph_module"]["module_call_graph"][0]["signature"]
        call["out_spec"] = json.dumps([1, spec])

    return edited(members, MODEL, edit)


EVIL: list[EvilCase] = [
    *(in_sample_inputs, in_weight, in_legacy_weights, in_opaque_constant, in_custom_object),
    *(in_tensor_constant, in_old_format, in_size_expression, in_operator, in_file_operator),
    *(in_node_name, in_tree_spec),
]


@pytest.mark.parametrize("case", EVIL)
def test_evil_archives_run_nothing(good: Path, tmp_path: Path, case: EvilCase) -> None:
    mark = tmp_path / "mark"
    path = write(tmp_path / "evil.pt2", case(members_of(good), mark, tmp_path))
    with pytest.raises(ProgramRefused, match=r"evil\.pt2"):
        programs.load(path, None)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [in_sample_inputs, in_weight, in_opaque_constant])
def test_torch_alone_would_have_run_them(good: Path, tmp_path: Path, case: EvilCase) -> None:
    """Otherwise the test above proves nothing."""
    mark = tmp_path / "mark"
    path = write(tmp_path / "evil.pt2", case(members_of(good), mark, tmp_path))
    with contextlib.suppress(Exception):  # whatever torch makes of the rest
        torch.export.load(path)
    assert mark.read_text() == "a pickle ran"


def test_guards_are_not_executed(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    guard = f"open({str(mark)!r}, 'w')"
    members = edited(members_of(good), MODEL, lambda tree: tree.update(guards_code=[guard]))
    program = programs.load(write(tmp_path / "guarded.pt2", members), None)
    program(torch.zeros(1, *INPUT.shape))
    assert not mark.exists()


def test_the_pickle_ban_ends_with_the_load(good: Path) -> None:
    before = torch.load
    programs.load(good, None)
    assert torch.load is before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the archive is damaged"),
        (b"PK\x03\x04 rubbish", "the archive is damaged"),
    ],
)
def test_rubbish(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(ProgramRefused, match=message):
        programs.load(tmp_path / "x.pt2", None)


def test_damaged_files_are_refused_or_harmless(good: Path, tmp_path: Path) -> None:
    """Flipped bytes and cut tails: a ProgramRefused or a program, never another error."""
    rng = random.Random(20261120)
    content = good.read_bytes()
    path = tmp_path / "x.pt2"
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        if rng.random() < 0.2:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            programs.load(path, None)
        except ProgramRefused:
            refused += 1
    assert refused > 75


def test_other_damage_inside(good: Path, tmp_path: Path) -> None:
    members = members_of(good)
    cases: dict[str, Members] = {
        "models/model.json is missing": {n: d for n, d in members.items() if n != MODEL},
        "not what torch.export writes": {**members, MODEL: b"[1, 2]"},
        "archive_format": {**members, "archive_format": b"pt3"},
        "weight_0 is empty": {**members, "data/weights/weight_0": b""},
        "weight_0 is missing": {n: d for n, d in members.items() if not n.endswith("weight_0")},
        "not allowed": {**members, "data/aotinductor/model/x.so": b"\x7fELF"},
        "'model/../../x' is not allowed": {**members, "../../x": b""},
        "torch cannot rebuild the program": {**members, "archive_version": b"99"},
    }
    for message, broken in cases.items():
        with pytest.raises(ProgramRefused, match=message):
            programs.load(write(tmp_path / "x.pt2", broken), None)
    path = write(tmp_path / "x.pt2", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ProgramRefused, match="is compressed or encrypted"):
        programs.load(path, None)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(bytes_max=1000), "the limit is 1000"),
        (ArchiveLimits(members_max=3), "members in the archive; the limit is 3"),
        (ArchiveLimits(json_bytes_max=100), "the limit is 100"),
    ],
)
def test_limits_are_named(good: Path, limits: ArchiveLimits, message: str) -> None:
    with pytest.raises(ProgramRefused, match=message):
        programs.load(good, None, limits=limits)
