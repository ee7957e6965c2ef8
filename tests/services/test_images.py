"""The images without Docker: rules for their files, for the bake file and for `compose.yaml`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fakes.dockerfile import SCRATCH, Dockerfile, Ignore, parse
from proa import __version__, spec

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.name: parse(path) for path in sorted((ROOT / "docker").glob("*.Dockerfile"))}
IGNORE = Ignore((ROOT / ".dockerignore").read_text())
BAKE = (ROOT / "docker/docker-bake.hcl").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
IMAGES = {"services", "cpu", "gpu"}
PINNED = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> Dockerfile:
    return FILES[request.param]


def test_every_image_is_there() -> None:
    assert set(FILES) == {"services.Dockerfile", "worker.Dockerfile"}
    assert {stage.name for f in FILES.values() for stage in f.stages} >= IMAGES


def test_bases_are_pinned_and_name_no_registry(file: Dockerfile) -> None:
    """A stage of before, scratch, or an image by version: no `latest`, no host."""
    known = {SCRATCH}
    for stage in file.stages:
        base = file.base_of(stage)
        assert base in known or PINNED.fullmatch(base), f"{stage.name} is from {base!r}"
        assert "$" in stage.base or base in known, "bases that are not ours are build arguments"
        known.add(stage.name)


def test_images_are_not_run_as_root(file: Dockerfile) -> None:
    for stage in file.stages:
        if stage.name in IMAGES:
            assert stage.steps[-2].text == file.final(stage, "USER") == "65532:65532"
            assert file.final(stage, "ENTRYPOINT") == '["proa-service"]'


def test_images_are_put_together_from_what_others_built(file: Dockerfile) -> None:
    """No step runs in a final stage: no compiler, no cache, no index gets into an image."""
    for stage in file.stages:
        if stage.name in IMAGES:
            copied = [step for step in stage.steps if step.keyword == "COPY"]
            assert copied
            assert all("from" in step.options for step in copied)
            assert not [step for step in stage.steps if step.keyword == "RUN"]


def test_what_is_copied_is_there_and_let_through(file: Dockerfile) -> None:
    names = {stage.name for stage in file.stages}
    for stage in file.stages:
        for step in stage.steps:
            if step.keyword != "COPY":
                continue
            if "from" in step.options:
                assert step.options["from"] in names
                continue
            for source in step.text.split()[:-1]:
                assert (ROOT / source).exists(), f"{file.path.name}:{step.line}: no {source}"
                assert not IGNORE(source), f"{source} is in .dockerignore"


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        (".git/config", True),
        (".venv/bin/python", True),
        ("out/demo/digits.pt2", True),
        ("tests/conftest.py", True),
        ("services/README.md", True),
        ("services/proa/entry.py", False),
        ("services/proa/cluster/__pycache__/fetch.cpython-311.pyc", True),
        ("constraints.txt", False),
    ],
)
def test_the_context_is_small(path: str, ignored: bool) -> None:
    assert IGNORE(path) is ignored


def test_other_instructions_are_refused(tmp_path: Path) -> None:
    """ADD fetches what nobody checked."""
    (tmp_path / "Dockerfile").write_text("FROM a:1.0\nADD http://host/x /x\n")
    with pytest.raises(ValueError, match="Dockerfile:2: ADD is not an instruction we use"):
        parse(tmp_path / "Dockerfile")


def test_the_bake_file_fits() -> None:
    """Its variables are declared; its targets name files, stages and tags that are there."""
    declared = set(re.findall(r'^variable "(\w+)"', BAKE, re.MULTILINE))
    assert set(re.findall(r"\b[A-Z][A-Z_]+\b", re.sub(r"#.*", "", BAKE))) == declared
    stages = {(f"docker/{name}", stage.name) for name, f in FILES.items() for stage in f.stages}
    targets = re.findall(r'^target "([a-z-]+)" \{\n(.*?)^\}', BAKE, re.MULTILINE | re.DOTALL)
    images = {}
    for name, body in targets:
        dockerfile = re.findall(r'^\s*dockerfile = "(.*)"', body, re.MULTILINE)
        target = re.findall(r'^\s*target = "(.*)"', body, re.MULTILINE)
        assert (*dockerfile, *target) in stages
        images[name] = re.findall(r'tags = image\("(.*)"\)', body)
    grouped = re.findall(r'"([a-z-]+)"', "".join(re.findall(r"targets = \[(.*?)\]", BAKE)))
    assert set(grouped) == set(images)
    assert images == {
        "services": ["proa-services"],
        "worker-cpu": ["proa-worker-cpu"],
        "worker-gpu": ["proa-worker-gpu"],
    }
    assert f'"{__version__}"' in BAKE


def test_build_arguments_are_those_of_the_files() -> None:
    known = {name for f in FILES.values() for name in f.args}
    known |= {
        step.text.partition("=")[0]
        for f in FILES.values()
        for stage in f.stages
        for step in stage.steps
        if step.keyword == "ARG"
    }
    given = set(re.findall(r"^\s*([A-Z_]+) = [A-Z_]+$", BAKE, re.MULTILINE))
    assert given == known


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_composed_services_are_locked_down(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"]
    assert service["mem_limit"]
    assert "readyz" in str(service["healthcheck"]["test"])
    assert re.fullmatch(
        r"proa-(services|worker-cpu):\$\{TAG:-" + __version__ + r"\}", service["image"]
    )
    file = FILES[Path(service["build"]["dockerfile"]).name]
    assert service["build"]["target"] in {stage.name for stage in file.stages}
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_composed_services_are_run_and_set_as_they_can_be(name: str) -> None:
    service = COMPOSE["services"][name]
    role = name.split("-")[1]
    command = " ".join(service["command"])
    assert command.split()[-1].strip('"') == role
    settings = (ROOT / "services/proa" / role / "settings.py").read_text()
    for variable in service.get("environment", {}):
        assert f'"{variable}"' in settings, f"{name}: {variable} is not a setting"


def test_the_composed_model_is_the_built_in_one() -> None:
    """As the chart's; checksums are those of the build, which the worker pins when it packs."""
    model = spec.load(ROOT / "docker/digits.yaml")
    assert model.has_parity
    assert {ref.path.name for ref in model.programs().values()} == {
        "digits.pt2",
        "digits-parity-k2.pt2",
    }
    copied = [
        step.text for step in FILES["worker.Dockerfile"].stages[-1].steps if "from" in step.options
    ]
    assert all(ref.path.name in " ".join(copied) for ref in model.programs().values())
