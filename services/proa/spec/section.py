"""Strict reading of YAML: every error names file, line, key and limit; nothing is ignored."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from proa.errors import SpecError

FILE_BYTES_MAX = 1 << 20
NULL = "tag:yaml.org,2002:null"


class Section:
    """One YAML value with its place in the file. Keys that nobody took are errors.

    `holder` is the value it stands in (itself at the top), `folder` what relative paths begin at.
    """

    def __init__(
        self, node: yaml.Node, path: str, file: Path, folder: Path, holder: Section | None = None
    ) -> None:
        self.node = node
        self.path = path
        self.file = file
        self.folder = folder
        self.holder = holder or self
        self._taken: set[str] = set()
        self._fields = self._index() if isinstance(node, yaml.MappingNode) else {}

    def error(self, message: str, node: yaml.Node | None = None) -> SpecError:
        """A SpecError that points at this value (or at `node`)."""
        line = (node or self.node).start_mark.line + 1
        return SpecError(f"{self.file}:{line}: {self.path or 'file'}: {message}")

    def _index(self) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        assert isinstance(self.node, yaml.MappingNode)
        fields: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in self.node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error("keys are plain words", key)
            if key.value in fields:
                raise self.error(f"key {key.value!r} stands here twice", key)
            fields[key.value] = (key, value)
        return fields

    @property
    def is_mapping(self) -> bool:
        """Whether this value is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    def keys(self) -> list[str]:
        """The keys of this mapping, in file order; an error if it is no mapping."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("must be a mapping of keys to values")
        return list(self._fields)

    def has(self, key: str) -> bool:
        """Whether `key` is given and is not null."""
        value = self._fields.get(key)
        return value is not None and value[1].tag != NULL

    def child(self, key: str, *, required: bool = False) -> Section | None:
        """The value of `key`, or None where it is absent or null."""
        self.keys()
        self._taken.add(key)
        if not self.has(key):
            if required:
                raise self.error(f"missing key {key!r}")
            return None
        return self._inside(self._fields[key][1], f".{key}")

    def _inside(self, node: yaml.Node, place: str) -> Section:
        path = f"{self.path}{place}" if self.path else place.lstrip(".")
        return Section(node, path, self.file, self.folder, self)

    def items(self, *, limit: int) -> list[Section]:
        """The elements of this list, at most `limit`."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("must be a list")
        if len(self.node.value) > limit:
            raise self.error(f"has {len(self.node.value)} elements; the limit is {limit}")
        return [self._inside(node, f"[{i}]") for i, node in enumerate(self.node.value)]

    def done(self) -> None:
        """Every key has been read by now: an unknown one is an error with a suggestion."""
        for key, (node, _) in self._fields.items():
            if key not in self._taken:
                near = difflib.get_close_matches(key, self._taken, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(sorted(self._taken))
                place = self._inside(node, f".{key}")
                raise place.error(f"unknown key{hint} (known here: {known})")


def read_file(file: Path, folder: Path | None = None) -> Section:
    """The root of a YAML file of at most 1 MiB; its paths begin at `folder`, or beside the file.

    Errors: SpecError.
    """
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise SpecError(f"{file}: larger than {FILE_BYTES_MAX} bytes")
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"{file}: cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(exc, "problem", None) or "not YAML"
        raise SpecError(f"{file}{line}: {problem}") from exc
    except (ValueError, OverflowError, RecursionError) as exc:
        # PyYAML lets these out: escapes beyond Unicode, numbers of thousands of digits, deep nests.
        raise SpecError(f"{file}: not YAML that can be read: {exc}") from exc
    if root is None:
        raise SpecError(f"{file}:1: file is empty")
    return Section(root, "", file, file.parent if folder is None else folder)
