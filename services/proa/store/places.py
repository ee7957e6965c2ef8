"""Where snapshots are kept: a directory, or a folder of a bucket of any S3 service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from proa.cluster.settings import S3_ENDPOINT
from proa.errors import EnvironmentLacks, InvalidRequest, UnknownModel

if TYPE_CHECKING:
    from proa.cluster.buckets import Folder

_TIMEOUT_S = 60.0


class Place(Protocol):
    """Files by name. Errors: InvalidRequest (not there, or not to be used), Unavailable and
    EnvironmentLacks of buckets."""

    @property
    def shown(self) -> str:
        """For errors."""
        ...

    def claim(self) -> None:
        """Errors: InvalidRequest if it has something in it."""

    def put(self, name: str, content: bytes) -> None:
        """There as a whole, and for good, when it returns."""

    def get(self, name: str) -> bytes: ...

    def move(self, old: str, new: str) -> None:
        """Give a file another name, at once or not at all."""


@dataclass(frozen=True)
class Directory:
    """Made where it is not there."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise _in_use(self)
        except OSError as exc:
            raise InvalidRequest(f"{self.path}: {exc.strerror}") from exc

    def put(self, name: str, content: bytes) -> None:
        with (self.path / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def get(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as exc:
            raise InvalidRequest(f"{self.path / name}: {exc.strerror}") from exc

    def move(self, old: str, new: str) -> None:
        (self.path / old).replace(self.path / new)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@dataclass(frozen=True)
class Bucket:
    """Must be there already."""

    folder: Folder

    @property
    def shown(self) -> str:
        return self.folder.shown

    def claim(self) -> None:
        try:
            if not self.folder.is_empty():
                raise _in_use(self)
        except UnknownModel as exc:
            raise InvalidRequest(str(exc)) from exc

    def put(self, name: str, content: bytes) -> None:
        self.folder.put(name, content)

    def get(self, name: str) -> bytes:
        try:
            return self.folder.get(name)
        except UnknownModel as exc:
            raise InvalidRequest(f"{self.shown}/{name}: {exc}") from exc

    def move(self, old: str, new: str) -> None:
        self.folder.move(old, new)


def place_of(
    text: str, environ: Mapping[str, str], endpoint: str = S3_ENDPOINT, region: str | None = None
) -> Place:
    """An absolute path, file:///PATH or s3://BUCKET/FOLDER. endpoint, region: of the service that
    has the bucket; credentials: AWS_* of `environ`.

    Errors: InvalidRequest, SettingsError, EnvironmentLacks.
    """
    url = urlsplit(text)
    if url.scheme == "s3":
        return _bucket(text, url.netloc, url.path.strip("/"), environ, endpoint, region)
    path = Path(unquote(url.path) if url.scheme == "file" else text)
    if url.scheme not in ("", "file") or not path.is_absolute():
        raise InvalidRequest(f"{text!r} is no absolute path, file:///PATH or s3://BUCKET/FOLDER")
    return Directory(path)


def _bucket(
    text: str,
    name: str,
    prefix: str,
    environ: Mapping[str, str],
    endpoint: str,
    region: str | None,
) -> Bucket:
    if not name or not prefix:
        raise InvalidRequest(f"{text!r}: s3:// wants a bucket and a folder")
    try:
        from proa.cluster.buckets import Folder, connect
    except ImportError as exc:
        raise EnvironmentLacks(f"{text}: no {exc.name}: pip install 'proa[cluster]'") from exc
    client = connect(endpoint, region, environ, _TIMEOUT_S, "PROA_STORE_S3_ENDPOINT")
    return Bucket(Folder(client, name, prefix))


def _in_use(place: Place) -> InvalidRequest:
    return InvalidRequest(f"{place.shown} is not empty; a snapshot needs a folder of its own")
