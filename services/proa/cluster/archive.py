"""Archives from outside, unpacked with limits: .tar, .tar.gz and .zip, told apart by their bytes.

Only regular files and folders come out, with plain permissions; whatever else is in an archive
(links, devices, paths that lead out of it, sparse or encrypted files) refuses it as a whole.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from proa.errors import ProgramRefused

DEPTH_MAX = 16
NAME_BYTES_MAX = 255
_HEADER_BYTES_MAX = 1 << 20  # tarfile reads extended headers at once, of whatever size they claim
_CHUNK_BYTES = 1 << 20
_GZIP, _ZIP, _TAR = b"\x1f\x8b", b"PK", b"ustar"
_TAR_OFFSET = 257
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError,
    NotImplementedError, UnicodeError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """files_max: files and folders; bytes_max: all files together, unpacked."""

    files_max: int
    bytes_max: int


def unpack(archive: Path, folder: Path, limits: Limits) -> int:
    """Unpack `archive` into the empty `folder`; returns how many files there are.

    Errors: ProgramRefused, naming the member or the limit; OSError of the disk.
    """
    writer = _Writer(folder, limits)
    with archive.open("rb") as file, _damage():
        head = file.read(_TAR_OFFSET + len(_TAR))
        file.seek(0)
        if head.startswith(_ZIP):
            _unpack_zip(file, writer)
        elif head.startswith(_GZIP):
            with gzip.open(file) as plain:
                _unpack_tar(plain, writer)
        elif head[_TAR_OFFSET:] == _TAR:
            _unpack_tar(file, writer)
        else:
            raise ProgramRefused("the archive is none of .tar, .tar.gz and .zip")
    if not writer.files:
        raise ProgramRefused("the archive holds no file")
    return writer.files


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as exc:
        raise ProgramRefused(f"the archive is damaged: {exc}") from exc


def _unpack_tar(plain: IO[bytes] | gzip.GzipFile, writer: _Writer) -> None:
    with tarfile.open(fileobj=cast("IO[bytes]", _Plain(plain)), mode="r:") as tar:
        for member in tar:
            if member.isdir():
                writer.folder(member.name)
                continue
            source = tar.extractfile(member) if member.isreg() else None
            if source is None or member.issparse():
                raise ProgramRefused(
                    f"member {_shown(member.name)} is a link, a device or sparse; only files and"
                    " folders are unpacked"
                )
            writer.file(member.name, source)


def _unpack_zip(file: BinaryIO, writer: _Writer) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ProgramRefused(
                    f"member {_shown(member.filename)} is a link or a device; only files and"
                    " folders are unpacked"
                )
            if member.flag_bits & 1:
                raise ProgramRefused(f"member {_shown(member.filename)} is encrypted")
            if member.is_dir():
                writer.folder(member.filename)
            else:
                with archive.open(member) as source:
                    writer.file(member.filename, source)


class _Plain:
    """What tarfile reads from; refuses a read that only a header of absurd size makes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_BYTES_MAX:
            raise ProgramRefused(
                f"a header of {size} bytes in the archive; the limit is {_HEADER_BYTES_MAX}"
            )
        return self._file.read(size)


class _Writer:
    """Writes members below `root` and counts."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.files = 0
        self._root = root
        self._limits = limits
        self._members = 0
        self._bytes = 0

    def folder(self, name: str) -> None:
        self._count()
        with _clash(name):
            self._path(name).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, source: IO[bytes]) -> None:
        self._count()
        path = self._path(name)
        with _clash(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.open("xb")
        with target:
            while chunk := source.read(_CHUNK_BYTES):
                self._bytes += len(chunk)
                if self._bytes > self._limits.bytes_max:
                    raise ProgramRefused(
                        "the archive's files are larger than"
                        f" PROA_FETCH_UNPACKED_BYTES_MAX={self._limits.bytes_max}"
                    )
                target.write(chunk)
        self.files += 1

    def _count(self) -> None:
        self._members += 1
        if self._members > self._limits.files_max:
            raise ProgramRefused(
                f"the archive has more members than PROA_FETCH_FILES_MAX={self._limits.files_max}"
            )

    def _path(self, name: str) -> Path:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if (
            name.startswith("/")
            or ".." in parts
            or "\\" in name
            or any(ord(letter) < ord(" ") for letter in name)
        ):
            raise ProgramRefused(f"member {_shown(name)} would leave the archive's folder")
        if len(parts) > DEPTH_MAX or any(len(os.fsencode(p)) > NAME_BYTES_MAX for p in parts):
            raise ProgramRefused(
                f"member {_shown(name)}: at most {DEPTH_MAX} folders, names of at most"
                f" {NAME_BYTES_MAX} bytes"
            )
        return self._root.joinpath(*parts)


@contextmanager
def _clash(name: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
        raise ProgramRefused(f"member {_shown(name)} is there twice") from exc


def _shown(name: str) -> str:
    return repr(name[:80])
