"""The specs of the served models: given files, or a folder that is watched.

The kubelet swaps all files of a mounted ConfigMap at once. A file that cannot be read keeps the
last good model in force: a slip in an editor must not take a model down.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from proa import spec as specs
from proa.errors import SettingsError, SpecError
from proa.spec import CodedModel

log = logging.getLogger(__name__)

POLL_S = 1.0
FILES_MAX = 1024
BYTES_MAX = 2 << 20  # twice what a spec may have
SUFFIXES = (".yaml", ".yml")


def load_files(text: str) -> dict[str, CodedModel]:
    """The models of a comma-separated list of files. Errors: SpecError, SettingsError."""
    loaded = [specs.load(path.strip()) for path in text.split(",") if path.strip()]
    found = {spec.name: spec for spec in loaded}
    if len(found) != len(loaded) or not found:
        names = [spec.name for spec in loaded]
        raise SettingsError(f"PROA_FRONTEND_SPECS: needs specs of different names, not {names}")
    return found


@dataclass(frozen=True)
class _File:
    """`good`: the model as it was last without an error; `error`: what is wrong with it now."""

    digest: bytes
    good: CodedModel | None
    error: str = ""


class SpecFolder:
    """The models of a folder. `on_error` hears of each error once, not at each look at it."""

    def __init__(self, folder: Path, on_error: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_error = on_error
        self._files: dict[Path, _File] = {}
        self._told: set[str] = set()

    def read(self) -> dict[str, CodedModel] | None:
        """The models in force by name; None where the folder itself cannot be read."""
        try:
            self._files = {path: self._read(path) for path in self._paths()}
        except (OSError, SettingsError) as exc:
            self._tell([f"PROA_FRONTEND_SPECS={self._folder}: {exc}"])
            return None
        found: dict[str, CodedModel] = {}
        errors = [file.error for file in self._files.values() if file.error]
        for path, file in self._files.items():
            if file.good is None:
                continue
            other = found.setdefault(file.good.name, file.good)
            if other is not file.good:
                errors.append(f"{path}: model {other.name!r} stands in {other.path} already")
        self._tell(errors)
        return found

    @property
    def broken(self) -> int:
        """Files that cannot be read as a spec just now."""
        return sum(bool(file.error) for file in list(self._files.values()))

    def _paths(self) -> list[Path]:
        # A name whose target has gone is a key that was just removed from the ConfigMap.
        paths = [p for p in self._folder.iterdir() if p.suffix in SUFFIXES and p.is_file()]
        if len(paths) > FILES_MAX:
            raise SettingsError(f"{len(paths)} files; the limit is {FILES_MAX}")
        return sorted(paths)

    def _read(self, path: Path) -> _File:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(BYTES_MAX)).digest()
        before = self._files.get(path, _File(b"", None))
        if before.digest == digest:
            return before
        try:
            return _File(digest, specs.load(path))
        except SpecError as exc:
            return _File(digest, before.good, str(exc))

    def _tell(self, errors: list[str]) -> None:
        for error in errors:
            if error not in self._told:
                self._on_error(error)
        self._told = set(errors)


async def watch(folder: SpecFolder, use: Callable[[Mapping[str, CodedModel]], None]) -> None:
    """Tell `use` what is in force, every second. Never returns."""
    while True:
        await asyncio.sleep(POLL_S)
        found = await asyncio.to_thread(folder.read)
        if found is not None:
            use(found)
