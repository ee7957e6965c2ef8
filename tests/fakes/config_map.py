"""A folder as the kubelet mounts a ConfigMap: all its files change at once."""

from __future__ import annotations

from pathlib import Path


class ConfigMap:
    """`folder`/NAME -> ..data/NAME, and ..data -> the folder of the version in force."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = 0
        folder.mkdir()

    def write(self, **files: str) -> None:
        """These are the files NAME.yaml from now on, swapped in as the kubelet does."""
        self._versions += 1
        version = self.folder / f"..version-{self._versions}"
        version.mkdir()
        for name, text in files.items():
            (version / f"{name}.yaml").write_text(text, encoding="utf-8")
        new = self.folder / "..data_tmp"
        new.symlink_to(version.name)
        new.replace(self.folder / "..data")
        for name in files:
            link = self.folder / f"{name}.yaml"
            if not link.is_symlink():
                link.symlink_to(Path("..data") / link.name)
        for link in self.folder.glob("*.yaml"):
            if link.stem not in files:
                link.unlink()
