"""The programs in NOTES.txt are right: they run against a real gRPC server."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import re
import textwrap
from typing import Any

import pytest

from fakes.oip_fake import FakeServer, serving
from helm.chart import Values, over, profile, render

DOUBLE: Values = {
    "name": "double",
    "source": {"builtin": "digits"},
    "spec": {
        "model": {
            "program": "m.pt2",
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1]}],
        }
    },
}


def programs(values: Values) -> list[str]:
    """Both programs, the one with proa's client first."""
    notes = render(values)["NOTES.txt"]
    found = re.findall(r"^  import numpy\n(?:(?:  .*)?\n)*", notes, re.MULTILINE)
    assert len(found) == 2
    return [textwrap.dedent(text) for text in found]


@pytest.mark.parametrize("at", [0, 1])
async def test_the_first_inference_works(at: int) -> None:
    program = programs(over(profile("default"), {"models": [DOUBLE]}))[at]
    said = io.StringIO()
    async with serving(FakeServer()) as fake:
        program = program.replace("127.0.0.1:8001", fake.address)
        with contextlib.redirect_stdout(said):
            await asyncio.to_thread(run, program)
    assert said.getvalue().startswith("[[0.]]")


def run(program: str) -> None:
    exec(compile(program, "NOTES.txt", "exec"), {})  # our own text


@pytest.mark.parametrize("own_certificate", [False, True])
def test_with_tls_the_client_is_told_so(own_certificate: bool) -> None:
    values = over(profile("tls"), {"tls": {"clientAuth": own_certificate}})
    own, other = programs(values)
    parts = {"ca", "server_name"} | ({"cert", "key"} if own_certificate else set())
    assert keywords(own, "Tls") == parts
    assert keywords(own, "Client") == {"tls", "token"}
    assert ("certificate_chain" in keywords(other, "InferenceServerClient")) == own_certificate
    assert keywords(other, "client.infer") == {"headers"}


def keywords(program: str, called: str) -> set[str | None]:
    """Names of the arguments that the call of `called` has."""
    calls: list[Any] = [n for n in ast.walk(ast.parse(program)) if isinstance(n, ast.Call)]
    (call,) = (n for n in calls if ast.unparse(n.func) == called)
    return {argument.arg for argument in call.keywords}


def test_notes_name_every_model() -> None:
    models = [{**DOUBLE, "name": name} for name in ("a", "b")]
    notes = render(over(profile("default"), {"models": models}))["NOTES.txt"]
    assert "serves a b." in notes
    assert "deployment/demo-proa-worker-b" in notes
    assert "no model yet" in render(over(profile("default"), {"models": []}))["NOTES.txt"]
