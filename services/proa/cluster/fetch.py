"""`proa-service fetch`: gets one model's files into a folder, then ends. Runs before a worker.

The archive is written down and its checksum compared before a byte of it is unpacked, and the
folder appears complete or not at all. Files of the same checksum are not fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from proa.cluster.archive import Limits, unpack
from proa.cluster.settings import FetchSettings
from proa.cluster.sources import Source
from proa.errors import (
    DeadlinePassed,
    EnvironmentLacks,
    ProgramRefused,
    RequestCancelled,
    SettingsError,
    Unavailable,
)
from proa.runtime.settings import from_env

log = logging.getLogger(__name__)

BACKOFF_S_MAX = 60.0
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


async def main() -> None:
    """Fetch as the environment says. Being told to stop ends the transfer soon."""
    settings = from_env(FetchSettings, os.environ)
    stop = threading.Event()
    try:
        await asyncio.to_thread(fetch, settings, os.environ, stop)
    finally:
        stop.set()


def fetch(
    settings: FetchSettings, environ: Mapping[str, str], stop: threading.Event | None = None
) -> bool:
    """Get the files of `settings`; False when they are there already. `stop`: give up.

    `environ` has the credentials for S3. Errors: SettingsError; UnknownModel (the server has no
    such file); ProgramRefused (checksum, limits, what the archive holds); EnvironmentLacks
    (credentials, certificates, disk); Unavailable and DeadlinePassed (it could not be reached).
    """
    wanted = settings.sha256.lower()
    if not _SHA256.fullmatch(wanted):
        raise SettingsError(
            f"PROA_FETCH_SHA256={settings.sha256!r} is not 64 hexadecimal digits; sha256sum prints"
            " them"
        )
    source = Source(settings, environ)
    place = Place(settings.out)
    with place.errors():
        place.check()
        if place.holds(wanted):
            log.info("already there out=%s sha256=%s", settings.out, wanted)
            return False
        began = time.monotonic()
        with place.draft() as draft:
            archive, files = draft / "archive", draft / "files"
            transfer = _Transfer(source, settings, stop or threading.Event())
            found = transfer.into(archive)
            if found != wanted:
                raise ProgramRefused(
                    f"{source.shown}: sha256 is {found}, PROA_FETCH_SHA256 says {wanted}; nothing"
                    " was unpacked"
                )
            bytes_read = archive.stat().st_size
            files.mkdir()
            limits = Limits(settings.files_max, settings.unpacked_bytes_max)
            count = unpack(archive, files, limits)
            place.put(files, wanted, draft)
    log.info(
        "fetched %s out=%s files=%d bytes=%d seconds=%.1f",
        source.shown, settings.out, count, bytes_read, time.monotonic() - began,
    )  # fmt: skip
    return True


class _Transfer:
    """One archive onto the disk, tried again as long as the trouble may pass."""

    def __init__(self, source: Source, settings: FetchSettings, stop: threading.Event) -> None:
        self._source = source
        self._settings = settings
        self._stop = stop
        self._end_s = time.monotonic() + settings.total_s_max

    def into(self, path: Path) -> str:
        """Write the archive to `path`; returns its sha256."""
        delay_s = self._settings.backoff_s
        for left in reversed(range(self._settings.attempts_max)):
            try:
                return self._attempt(path)
            except Unavailable as exc:
                if not left:
                    raise
                log.warning("try again in %.1f s tries_left=%d error=%s", delay_s, left, exc)
            self._stop.wait(delay_s)
            delay_s = min(2 * delay_s, BACKOFF_S_MAX)
        raise AssertionError("attempts_max is at least 1")

    def _attempt(self, path: Path) -> str:
        self._check()
        digest, count = hashlib.sha256(), 0
        with path.open("wb") as file, contextlib.closing(self._source.pieces()) as pieces:
            for piece in pieces:
                self._check()
                count += len(piece)
                if count > self._settings.bytes_max:
                    raise ProgramRefused(
                        f"{self._source.shown} is larger than"
                        f" PROA_FETCH_BYTES_MAX={self._settings.bytes_max}"
                    )
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()

    def _check(self) -> None:
        if self._stop.is_set():
            raise RequestCancelled("told to stop")
        if time.monotonic() > self._end_s:
            raise DeadlinePassed(
                f"{self._source.shown} is not complete after"
                f" PROA_FETCH_TOTAL_S_MAX={self._settings.total_s_max:g} s"
            )


class Place:
    """The folder `out`. A note of what it holds, `.NAME.sha256`, lies beside it; in it, where it is
    a mount point: then there may be no place beside it, and its entries are moved one by one."""

    def __init__(self, out: Path, *, mounted: bool | None = None) -> None:
        self._out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link
        self._mounted = self._out.is_mount() if mounted is None else mounted
        self._home = self._out if self._mounted else self._out.parent
        self._note = self._home / f".{self._out.name}.sha256"

    def check(self) -> None:
        """Errors: EnvironmentLacks, if what is there is not ours to replace."""
        if not self._note.exists() and self._out.exists() and list(self._content()):
            raise EnvironmentLacks(
                f"PROA_FETCH_OUT={self._out} holds something that was not fetched; name a folder"
                " that does not exist yet"
            )

    def holds(self, sha256: str) -> bool:
        """Whether the files of that archive are there."""
        if not self._out.is_dir() or not self._note.exists():
            return False
        return self._note.read_text(encoding="utf-8").strip() == sha256

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder on the same disk, gone at the end; so are those of fetches that were killed."""
        self._home.mkdir(parents=True, exist_ok=True)
        for old in self._home.glob(f"{self._draft_prefix}*"):
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=self._draft_prefix, dir=self._home) as name:
            yield Path(name)

    def put(self, files: Path, sha256: str, draft: Path) -> None:
        """Replace what `out` holds. After a kill in between, the note says nothing, and the next
        fetch does it again."""
        self._note.write_text("", encoding="utf-8")
        old = draft / "old"
        if self._mounted:
            old.mkdir()
            for entry in list(self._content()):
                entry.rename(old / entry.name)
            for entry in list(files.iterdir()):
                entry.rename(self._out / entry.name)
        else:
            if self._out.exists():
                self._out.rename(old)
            files.rename(self._out)
        self._note.write_text(f"{sha256}\n", encoding="utf-8")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What the disk has against it."""
        try:
            yield
        except OSError as exc:
            raise EnvironmentLacks(
                f"cannot write {exc.filename or self._out}: {exc.strerror}; PROA_FETCH_OUT must be"
                " on a volume that is writable and large enough for the archive and its files"
            ) from exc

    @property
    def _draft_prefix(self) -> str:
        return f".{self._out.name}.fetch-"

    def _content(self) -> Iterator[Path]:
        """What is in `out`, beside what we and a new file system put there."""
        for entry in self._out.iterdir():
            ours = entry == self._note or entry.name.startswith(self._draft_prefix)
            if not ours and entry.name != "lost+found":
                yield entry
