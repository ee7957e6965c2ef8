"""Unpacking archives from outside: what comes out, and what refuses them."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from proa.cluster.archive import Limits, unpack
from proa.errors import ProgramRefused

LIMITS = Limits(files_max=10, bytes_max=1000)
FILES = {"a.pt2": b"first", "more/b.pt2": b"second"}


def tar(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w", **options: object) -> bytes:
    """An archive of files by name; a TarInfo stands for itself, without content."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def unpacked(content: bytes, folder: Path, limits: Limits = LIMITS) -> dict[str, bytes]:
    (folder / "archive").write_bytes(content)
    out = folder / "out"
    out.mkdir()
    count = unpack(folder / "archive", out, limits)
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert count == len(found)
    return found


MAKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "tar": lambda files: tar({**files}),
    "tar.gz": lambda files: tar({**files}, "w:gz"),
    "pax": lambda files: tar({**files}, format=tarfile.PAX_FORMAT),
    "zip": zipped,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_files_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    assert unpacked(MAKERS[kind](FILES), tmp_path) == FILES


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", "back\\slash", "line\nbreak"])
def test_nothing_leaves_the_folder(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="would leave the archive's folder"):
        unpacked(MAKERS[kind]({name: b""}), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "out"]


@pytest.mark.parametrize("kind", MAKERS)
def test_limits_are_named(kind: str, tmp_path: Path) -> None:
    bomb = MAKERS[kind]({"zeros": bytes(1001)})
    with pytest.raises(ProgramRefused, match="PROA_FETCH_UNPACKED_BYTES_MAX=1000"):
        unpacked(bomb, tmp_path)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_number_of_members_has_a_limit(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="PROA_FETCH_FILES_MAX=10"):
        unpacked(MAKERS[kind]({f"f{i}": b"" for i in range(11)}), tmp_path)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["/".join("d" * 17), "n" * 256])
def test_paths_have_limits(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="at most 16 folders, names of at most 255 bytes"):
        unpacked(MAKERS[kind]({name: b""}), tmp_path)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_member_is_there_twice(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match="'a/b' is there twice"):
        unpacked(MAKERS[kind]({"a": b"", "a/b": b""}), tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        info("link", tarfile.SYMTYPE, "/etc/passwd"),
        info("hard", tarfile.LNKTYPE, "a.pt2"),
        info("device", tarfile.CHRTYPE),
        info("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_tar_members_that_are_no_files(member: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match=f"'{member.name}' is a link, a device or sparse"):
        unpacked(tar({"a.pt2": b"", member.name: member}), tmp_path)


def test_zip_members_that_are_no_files(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ProgramRefused, match="'link' is a link or a device"):
        unpacked(made.getvalue(), tmp_path)


def test_permissions_are_plain(tmp_path: Path) -> None:
    member = tarfile.TarInfo("run")
    member.mode = 0o6777
    unpacked(tar({"run": member}), tmp_path)
    assert (tmp_path / "out/run").stat().st_mode & 0o7111 == 0


def test_folders_and_dots(tmp_path: Path) -> None:
    root, folder = info(".", tarfile.DIRTYPE), info("./sub/", tarfile.DIRTYPE)
    found = unpacked(tar({".": root, "sub": folder, "./sub/x": b"x"}), tmp_path)
    assert found == {"sub/x": b"x"}


def test_a_header_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    """tarfile reads an extended header at once, into memory."""
    header = info("huge", tarfile.XHDTYPE)
    header.size = 1 << 30
    with pytest.raises(ProgramRefused, match="a header of 1073741824 bytes"):
        unpacked(header.tobuf() + bytes(10_240), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", r"none of \.tar, \.tar\.gz and \.zip"),
        (b"", r"none of \.tar"),
        (tar({}, "w:gz"), "holds no file"),
        (tar({**FILES}, "w:gz")[:60], "is damaged"),
        (b"\x1f\x8b garbage", "is damaged"),
        (b"PK garbage", "is damaged"),
        (zipped(FILES, zipfile.ZIP_STORED).replace(b"first", b"FIRST"), "is damaged: Bad CRC"),
    ],
    ids=["html", "nothing", "empty", "cut", "gzip", "zip", "crc"],
)
def test_what_is_no_archive(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramRefused, match=message):
        unpacked(content, tmp_path)
