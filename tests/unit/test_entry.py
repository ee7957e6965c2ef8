"""The images' one command: a subcommand per service, imported when it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

import pytest

from proa import entry


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROA_")}
    return subprocess.run(
        [sys.executable, "-m", "proa.entry", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", entry.SERVICES)
def test_every_service_has_a_main(name: str) -> None:
    assert callable(import_module(entry.SERVICES[name][0]).main)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["encoder", "more"], ["enc"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(arguments)
    assert caught.value.code == 2
    assert "usage: proa-service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("service", "variable"),
    [
        ("frontend", "PROA_FRONTEND_PORT"),
        ("encoder", "PROA_ENCODER_PORT"),
        ("decoder", "PROA_DECODER_PORT"),
        ("worker", "PROA_WORKER_PORT"),
        ("store-agent", "PROA_STORE_PORT"),
        ("store-coordinator", "PROA_STORE_PORT"),
        ("fetch", "PROA_FETCH_BYTES_MAX"),
        ("smoke", "PROA_SMOKE_QUERIES"),
        ("chaos", "PROA_CHAOS_SEED"),
    ],
)
def test_a_wrong_setting_is_named(service: str, variable: str) -> None:
    required = {
        "PROA_FRONTEND_SPECS": "specs", "PROA_FRONTEND_WORKERS": "workers",
        "PROA_WORKER_REPOSITORY": "repository",
        "PROA_FETCH_URL": "http://host/x", "PROA_FETCH_SHA256": "0", "PROA_FETCH_OUT": "out",
        "PROA_SMOKE_ADDRESS": "host:1", "PROA_SMOKE_SPECS": "specs",
        "PROA_STORE_SHARD": "0", "PROA_STORE_COORDINATOR": "host:1",
        "PROA_STORE_SHARDS": "host:1|host:2@n", "PROA_STORE_STATE": "x",
        "PROA_CHAOS_FILE": "x", "PROA_CHAOS_INSTANCE": "r", "PROA_CHAOS_ADDRESS": "host:1",
    }  # fmt: skip
    prefix = f"PROA_{service.partition('-')[0].upper()}_"
    mine = {"store-agent": ("SHARD", "COORDINATOR"), "store-coordinator": ("SHARDS", "STATE")}
    given = {
        name: value
        for name, value in required.items()
        if name.startswith(prefix)
        and (service not in mine or name.removeprefix(prefix) in mine[service])
    }
    ended = run(service, **given, **{variable: "eight"})
    assert ended.returncode == 2
    assert f"{variable}='eight' is not an integer" in ended.stderr


def test_nothing_is_imported_before_its_turn() -> None:
    code = (
        "import sys, proa.entry\n"
        "sys.exit(any(name.startswith(('grpc', 'torch', 'kubernetes', 'proa.frontend'))"
        " for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fetch_does_without_torch() -> None:
    code = "import sys, proa.cluster.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
