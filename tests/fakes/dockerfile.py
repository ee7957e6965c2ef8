"""Dockerfiles without Docker: a parser of the instructions ours use, and a replay of a stage's
steps in a folder that stands for the image's `/opt`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "ENTRYPOINT", "WORKDIR"}
SCRATCH = "scratch"
_OPTION = re.compile(r"--([a-z]+)=(\S+)\s+")
_VARIABLE = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::(?P<sign>[-+])(?P<word>[^}]*))?\})")
_PAIR = re.compile(r"(\w+)=(\S*)")
_INSIDE = re.compile(r"(?<![\w.])/opt(?=[/\s'\"):]|$)")
_CACHE = "/var/cache/pip"
# What an environment may know about networks and indexes; nothing else gets into a replay.
_PASSED = re.compile(r"(?i)(PIP_\w+|\w+_proxy|SSL_CERT_\w+|LANG|LC_\w+|TMPDIR)")


@dataclass(frozen=True)
class Step:
    """One instruction: `options` are those in front, as in --from=builder."""

    keyword: str
    options: Mapping[str, str]
    text: str
    line: int


@dataclass(frozen=True)
class Stage:
    """`base`: as written after FROM."""

    base: str
    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Dockerfile:
    """`args`: the ARGs before the first FROM, with their defaults."""

    path: Path
    args: Mapping[str, str]
    stages: tuple[Stage, ...]

    def base_of(self, stage: Stage) -> str:
        return substituted(stage.base, self.args)

    def final(self, stage: Stage, keyword: str) -> str | None:
        """The last such instruction of a stage or of those it is from."""
        own = [step.text for step in stage.steps if step.keyword == keyword]
        if own:
            return own[-1]
        parents = [one for one in self.stages if one.name == stage.base]
        return self.final(parents[0], keyword) if parents else None


def parse(path: Path) -> Dockerfile:
    """Errors: ValueError for an instruction that ours do not use."""
    args: dict[str, str] = {}
    stages: list[tuple[str, str, list[Step]]] = []
    for number, text in _instructions(path.read_text(encoding="utf-8")):
        keyword, _, rest = text.partition(" ")
        options = {}
        while found := _OPTION.match(rest):
            options[found[1]] = found[2]
            rest = rest[found.end() :]
        if keyword not in KNOWN:
            raise ValueError(f"{path.name}:{number}: {keyword} is not an instruction we use")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append((base, name, []))
        elif not stages:
            name, _, default = rest.partition("=")
            args[name] = default
        else:
            stages[-1][2].append(Step(keyword, options, rest.strip(), number))
    return Dockerfile(path, args, tuple(Stage(b, n, tuple(s)) for b, n, s in stages))


def _instructions(text: str) -> Iterator[tuple[int, str]]:
    """Instructions with their first line; continued lines are joined, comments dropped."""
    held, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if held else number
        held += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield start, re.sub(r"\s+", " ", held).strip()
            held = ""


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """$NAME, ${NAME}, ${NAME:-word} and ${NAME:+word}, as Docker knows them."""

    def value(found: re.Match[str]) -> str:
        known = variables.get(found["plain"] or found["name"], "")
        if found["sign"] == "-":
            return known or found["word"]
        return (found["word"] if known else "") if found["sign"] == "+" else known

    return _VARIABLE.sub(value, text)


class Ignore:
    """A .dockerignore: the last pattern that matches a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        rows = [row.strip() for row in text.splitlines()]
        self._rules = [
            (row.startswith("!"), _pattern(row.lstrip("!")))
            for row in rows
            if row and not row.startswith("#")
        ]

    def __call__(self, path: str) -> bool:
        """Whether the builder does not see `path`, relative to the context."""
        parts = path.split("/")
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        ignored = False
        for kept, pattern in self._rules:
            if any(pattern.fullmatch(one) for one in above):
                ignored = not kept
        return ignored


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text.strip("/")).replace(r"\*\*/", "(?:.*/)?")
    return re.compile(escaped.replace(r"\*", "[^/]*"))


@dataclass
class Image:
    """A stage after its steps: its environment, its entry point, where its /opt lies."""

    root: Path
    env: dict[str, str]
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)


class Replay:
    """Runs the stages of a Dockerfile, up to `target`, in `folder`.

    The folder `image/opt` stands for /opt, for one stage after the other, so that paths stay as
    they were when a later stage copies from an earlier one. A virtual environment of this Python
    stands for the Python image. The cache mount is pip's own cache.
    """

    def __init__(
        self, file: Dockerfile, context: Path, folder: Path, args: Mapping[str, str] | None = None
    ) -> None:
        self._file = file
        self._context = context
        self._ignore = Ignore((context / ".dockerignore").read_text(encoding="utf-8"))
        self._folder = folder
        self._root = folder / "image"
        self._args = {**file.args, **(args or {})}
        self._images: dict[str, Image] = {}

    def run(self, target: str) -> Image:
        """The image of stage `target`, whose /opt is in place afterwards."""
        self._build(target)
        image = self._images[target]
        self._enter(image)
        return image

    def _build(self, name: str) -> None:
        if name in self._images:
            return
        (stage,) = (one for one in self._file.stages if one.name == name)
        needed = [step.options["from"] for step in stage.steps if "from" in step.options]
        parents = [one.name for one in self._file.stages if one.name == stage.base]
        for other in (*parents, *needed):
            self._build(other)
        image = self._from(name, self._images[parents[0]] if parents else None)
        self._enter(image)
        arguments: dict[str, str] = {}
        for step in stage.steps:
            self._step(step, image, arguments)
        self._leave(image)
        self._images[name] = image

    def _from(self, name: str, parent: Image | None) -> Image:
        home = self._folder / name
        if parent is not None:
            subprocess.run(["cp", "-al", parent.root, home], check=True)
            return Image(home, dict(parent.env), parent.workdir, parent.user)
        home.mkdir(parents=True)
        base = self._folder / f"python-{name}"
        subprocess.run([sys.executable, "-m", "venv", base], check=True)
        passed = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
        path = f"{base / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return Image(home, {**passed, "PATH": path, "HOME": str(self._folder)})

    def _enter(self, image: Image) -> None:
        self._root.mkdir(exist_ok=True)
        for other in self._images.values():
            self._leave(other)
        if (image.root / "opt").exists():
            (image.root / "opt").rename(self._root / "opt")
        else:
            (self._root / "opt").mkdir()
        (self._root / "of").write_text(str(image.root))

    def _leave(self, image: Image) -> None:
        note = self._root / "of"
        if note.exists() and note.read_text() == str(image.root):
            (self._root / "opt").rename(image.root / "opt")
            note.unlink()

    def _step(self, step: Step, image: Image, arguments: dict[str, str]) -> None:
        known = {**arguments, **image.env}
        text = step.text
        match step.keyword:
            case "ARG":
                name, _, default = text.partition("=")
                arguments[name] = self._args.get(name, default)
            case "ENV":
                for name, value in _PAIR.findall(text):
                    image.env[name] = self.inside(substituted(value, known))
            case "WORKDIR":
                image.workdir = text
                Path(self.inside(text)).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = text
            case "ENTRYPOINT":
                image.entrypoint = json.loads(text)
            case "COPY":
                self._copy(substituted(text, known).split(), step.options.get("from"), image)
            case "RUN":
                subprocess.run(
                    ["/bin/sh", "-c", self.inside(text)],
                    cwd=self.inside(image.workdir),
                    env={**image.env, **arguments},
                    check=True,
                )

    def _copy(self, paths: list[str], stage: str | None, image: Image) -> None:
        *sources, target = paths
        place = Path(self.inside(str(Path(image.workdir, target))))
        for source in sources:
            if stage is not None:
                found = self._images[stage].root / source.lstrip("/")
            else:
                found = self._context / source
            is_folder = len(sources) > 1 or target.endswith("/") or (place.is_dir())
            to = place / found.name if found.is_file() and is_folder else place
            to.parent.mkdir(parents=True, exist_ok=True)
            if stage is not None:
                subprocess.run(["cp", "-alT", found, to], check=True)
            elif found.is_file():
                assert not self._ignore(source), f"{source} is ignored"
                shutil.copy(found, to)
            else:
                shutil.copytree(found, to, ignore=self._ignored)

    def _ignored(self, folder: str, names: list[str]) -> list[str]:
        where = Path(folder).relative_to(self._context)
        return [name for name in names if self._ignore(str(where / name))]

    def inside(self, text: str) -> str:
        """`text` with the paths of the image replaced by where they are here."""
        cache = subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"],
            capture_output=True, text=True, check=True,
        ).stdout.strip() if _CACHE in text else ""  # fmt: skip
        return _INSIDE.sub(f"{self._root}/opt", text.replace(_CACHE, cache))
