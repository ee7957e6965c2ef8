"""`proa up --trace`: what it takes, and what the processes are told."""

from __future__ import annotations

import os

import pytest

from proa.cli import up
from proa.cli.main import build_parser
from proa.runtime.settings import from_env
from proa.runtime.tracing import TracingSettings


def told(*argv: str) -> TracingSettings:
    """What a process that is started by `proa up spec.yaml ...` reads."""
    args = build_parser().parse_args(["up", "spec.yaml", *argv])
    with up._environment(up._tracing(args)):
        return from_env(TracingSettings, os.environ)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """What is set in the shell is for other purposes."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")


def test_all_requests_go_to_proa_trace():
    settings = told("--trace")
    assert (settings.endpoint, settings.protocol) == ("http://127.0.0.1:4318", "http/protobuf")
    assert (settings.sample, settings.disabled) == (1.0, False)


def test_another_collector_and_a_share():
    settings = told("--trace", "otel.example:80", "--trace-sample", "0.125")
    assert (settings.endpoint, settings.sample) == ("http://otel.example:80", 0.125)


def test_without_it_the_shell_s_settings_hold():
    before = dict(os.environ)
    assert told().endpoint == "http://elsewhere:4317"
    told("--trace")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "argv",
    [
        ("--trace", "spec.yaml"),
        ("--trace", "http://127.0.0.1:4318"),
        ("--trace", "127.0.0.1:0"),
        ("--trace", "127.0.0.1:70000"),
        ("--trace-sample", "2"),
        ("--trace-sample", "nan"),
    ],
)
def test_what_it_does_not_take(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["up", "spec.yaml", *argv])
    assert stopped.value.code == 2
    assert f"argument {argv[0]}: '{argv[1]}' is not" in capsys.readouterr().err
