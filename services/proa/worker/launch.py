"""How to run Triton against a repository of ours: the one that is installed where
PROA_WORKER_TRITON says (Triton's own image), else that of the `nvidia-pytriton` wheel.

The wheel ships `tritonserver`, the Python backend and one stub binary for each Python version.
Triton looks for library and stub in one folder, so that is put together in the worker's scratch.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.errors import EnvironmentLacks
from proa.runtime.certificates import CA, CERTIFICATE, KEY

SHM = Path("/dev/shm")  # noqa: S108 - Triton's shared-memory regions live there, by its choice
PYTHONS = ((3, 11), (3, 12))
SHM_BYTES = 1 << 20  # Triton's minimum; a region grows to the largest message and never shrinks
STUB_TIMEOUT_S = 120  # importing torch takes a busy machine long
# A stub has 32 threads in Triton to send answers and for calls of other models. Packed models call
# none and answer one request at a time; a killed Triton closes its sockets when all have ended.
PACKED_THREADS = 4
EXIT_TIMEOUT_S = 5  # for what is in flight; a request that an injected fault dropped never ends
# glibc gives large freed blocks back to the kernel, and every pass of a model then pays for its
# pages anew (ResNet-50, batch 8, one core: a tenth of the time, and much of its scatter).
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
_RESTRICTED = "shared-memory,model-repository,trace,logging"
_FIX = "pip install 'proa[worker]'"
_PR_SET_PDEATHSIG = 1
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so")  # the stub is linked with one


@dataclass(frozen=True)
class Ports:
    """Where Triton listens."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Parts:
    """Where the parts of a Triton are. `site`: the folder of packages that the wheel lies in; None
    for an installed Triton, which finds its backends by itself."""

    server: Path
    backend: Path
    stub: Path
    libraries: Path
    site: Path | None = None


@dataclass(frozen=True)
class Launch:
    """A command with its environment, and the prefix of its shared-memory regions."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    shm_prefix: str


def find_wheel() -> Parts:
    """Locate the wheel in this Python. Raises EnvironmentLacks, naming the fix."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentLacks(
            f"the Triton wheel is for Linux on x86_64, this is {sys.platform} on"
            f" {platform.machine()}; use the worker image there"
        )
    version = sys.version_info[:2]
    if version not in PYTHONS:
        raise EnvironmentLacks(
            f"the worker needs Python 3.11 or 3.12, this is {version[0]}.{version[1]}; make a"
            f" virtual environment of one of these and {_FIX}"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentLacks(f"the package nvidia-pytriton is not installed; {_FIX}")
    package = Path(next(iter(spec.submodule_search_locations)))
    triton = package / "tritonserver"
    stubs = triton / "python_backend_stubs" / f"{version[0]}.{version[1]}"
    wheel = Parts(
        server=triton / "bin" / "tritonserver",
        backend=triton / "backends" / "python",
        stub=stubs / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
        site=package.parent,
    )
    for part in (wheel.server, wheel.backend, wheel.stub, wheel.libraries):
        if not part.exists():
            raise EnvironmentLacks(f"nvidia-pytriton is incomplete, {part} is missing; {_FIX}")
    return wheel


def find_installed(folder: Path) -> Parts:
    """The Triton installed in `folder`, as /opt/tritonserver of its image.

    Raises EnvironmentLacks: what is missing there, or another Python than its stub was built for.
    """
    backend = folder / "backends" / "python"
    found = Parts(
        server=folder / "bin" / "tritonserver",
        backend=backend,
        stub=backend / "triton_python_backend_stub",
        libraries=folder / "lib",
    )
    helpers = (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py")
    for part in (found.server, found.stub, *helpers):
        if not part.is_file():
            raise EnvironmentLacks(
                f"PROA_WORKER_TRITON={folder}: {part.relative_to(folder)} is missing; name the"
                " folder of a complete Triton, or leave it out to use the nvidia-pytriton wheel"
            )
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    built_for = {match.decode() for match in _LIBPYTHON.findall(found.stub.read_bytes())}
    if built_for and own not in built_for:
        raise EnvironmentLacks(
            f"PROA_WORKER_TRITON={folder}: its Python stub is built for Python"
            f" {', '.join(sorted(built_for))}, this is {own}; run the worker with that Python"
        )
    return found


def find_libpython() -> Path | None:
    """The folder of this Python's shared library; None where the loader finds it by itself.

    Raises EnvironmentLacks for a Python built without one: Triton's stub embeds Python.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    name = f"libpython{version}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    try:
        ctypes.CDLL(name)
    except OSError as exc:
        raise EnvironmentLacks(
            f"{name} is neither beside this Python nor on the loader path, and Triton's Python stub"
            " needs it; use a Python built with --enable-shared (Debian: apt install"
            f" libpython{version}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        ) from exc
    return None


def prepare(
    repository: Path,
    scratch: Path,
    ports: Ports,
    environ: Mapping[str, str],
    *,
    host: str,
    installed: Path | None = None,
    tls: Path | None = None,
    foreign: bool = True,
    more: Sequence[str] = (),
) -> Launch:
    """Put the backend folder together in `scratch` and return what to run.

    `environ`: the environment that tritonserver and its stubs inherit; `installed`: the folder of
    a Triton to use in place of the wheel's; `tls`: the folder of its certificate, key and CA;
    `foreign`: there may be other models than those that `proa pack` writes; `more`: further
    options. Raises EnvironmentLacks.
    """
    triton = find_installed(installed) if installed else find_wheel()
    backends = _backend_folder(triton, scratch) if triton.site else triton.backend.parent
    prefix = shm_prefix(scratch)
    key = secrets.token_hex(16)  # nobody is told
    options = {
        "model-repository": repository,
        "backend-directory": backends,
        "disable-auto-complete-config": "true",  # otherwise every model is loaded twice
        "model-control-mode": "none",  # nobody loads code into a running worker; it is restarted
        "grpc-address": host,
        "grpc-port": ports.grpc,
        "http-address": host,
        "http-port": ports.http,
        "metrics-address": host,
        "metrics-port": ports.metrics,
        "allow-gpu-metrics": "false" if triton.site else "true",  # the wheel lacks what it takes
        # Clients ping every second, to notice a frozen server in two.
        "grpc-http2-min-recv-ping-interval-without-data": 500,
        "grpc-http2-max-ping-strikes": 0,
        "grpc-keepalive-permit-without-calls": 1,
        "grpc-http2-max-pings-without-data": 0,
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        # Clients that name regions of /dev/shm could read and write those of the stubs.
        "grpc-restricted-protocol": f"{_RESTRICTED}:proa-key={key}",
        "http-restricted-api": f"{_RESTRICTED}:proa-key={key}",
        **_tls_options(tls),
        "log-info": "false",
        "log-format": "ISO8601",
    }
    command = [str(triton.server)]
    command += [f"--{name}={value}" for name, value in options.items() if name != _FLAG]
    command += [f"--{_FLAG}", *_backend_options(prefix, foreign=foreign), *more]
    return Launch(tuple(command), _environment(triton, environ), prefix)


_FLAG = "disable-auto-complete-config"  # takes no value


def _tls_options(folder: Path | None) -> dict[str, object]:
    """Mutual TLS, and no HTTP beside it: Triton has no TLS there, it would be a way around."""
    if folder is None:
        return {}
    # A mounted secret changes by a swap of links: Triton must see files of one version.
    certificate, key, root = ((folder / name).resolve() for name in (CERTIFICATE, KEY, CA))
    return {
        "grpc-use-ssl": "true",
        "grpc-use-ssl-mutual": "true",
        "grpc-server-cert": certificate,
        "grpc-server-key": key,
        "grpc-root-cert": root,
        "allow-http": "false",
        "allow-metrics": "true",
    }


def _backend_options(prefix: str, *, foreign: bool) -> list[str]:
    options: dict[str, object] = {
        "shm-region-prefix-name": prefix,
        "shm-default-byte-size": SHM_BYTES,
        "shm-growth-byte-size": SHM_BYTES,
        "stub-timeout-seconds": STUB_TIMEOUT_S,
    }
    if not foreign:
        options["thread-pool-size"] = PACKED_THREADS
    return [f"--backend-config=python,{name}={value}" for name, value in options.items()]


def _backend_folder(wheel: Parts, scratch: Path) -> Path:
    """`scratch`/backends/python with library, helper module and stub. The stub must be a real file
    there: it finds its Python helper beside itself."""
    backends = scratch / "backends"
    shutil.rmtree(backends, ignore_errors=True)
    folder = backends / "python"
    try:
        folder.mkdir(parents=True)
        for source in (*wheel.backend.iterdir(), wheel.stub):
            if source.is_file():
                shutil.copy(source, folder / source.name)
        (folder / wheel.stub.name).chmod(0o755)
    except OSError as exc:
        raise EnvironmentLacks(
            f"cannot write {exc.filename}: {exc.strerror}; make PROA_WORKER_SCRATCH a writable"
            " directory on a file system that allows execution"
        ) from exc
    return backends


def _environment(triton: Parts, environ: Mapping[str, str]) -> dict[str, str]:
    proa = importlib.util.find_spec("proa")
    assert proa is not None
    assert proa.submodule_search_locations is not None
    source = Path(next(iter(proa.submodule_search_locations))).parent
    libpython = find_libpython()
    libraries = [triton.libraries, *([libpython] if libpython else [])]
    return {
        **MALLOC,
        **environ,
        # The stub embeds Python with its environment switched off: it finds its home, and the
        # virtual environment, by the first python3 on PATH. PYTHONPATH is for our model.py.
        "PATH": _joined([Path(sys.executable).parent], environ.get("PATH", os.defpath)),
        "PYTHONPATH": _joined([source, *_site_folders(triton.site)], environ.get("PYTHONPATH")),
        "LD_LIBRARY_PATH": _joined(libraries, environ.get("LD_LIBRARY_PATH")),
    }


def _site_folders(site: Path | None) -> list[Path]:
    own = (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return list(dict.fromkeys((*([site] if site else []), *own)))


def _joined(first: list[Path], rest: str | None) -> str:
    return os.pathsep.join([*(str(path) for path in first), *([rest] if rest else [])])


def shm_prefix(scratch: Path) -> str:
    """Prefix of the regions of the worker of `scratch`: the next worker there can clean them."""
    return f"proa-{hashlib.sha256(str(scratch.resolve()).encode()).hexdigest()[:12]}-"


def clean_shm(prefix: str, folder: Path = SHM) -> int:
    """Remove regions that a killed Triton of this `prefix` left behind. Returns how many."""
    assert prefix.startswith("proa-")
    found = [path for path in folder.iterdir() if path.name.startswith(prefix)]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def die_with_parent() -> Callable[[], None]:
    """A function for the child, between fork and exec: SIGKILL it when this process dies."""
    libc = ctypes.CDLL(None, use_errno=True)  # looked up before the fork: no imports after it
    parent = os.getpid()

    def apply() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)

    return apply
