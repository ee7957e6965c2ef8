"""`python -m proa.frontend`: what stops its start, and that the message says why."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys

import pytest

from fakes.cluster import frontend, write_spec
from fakes.triton_fake import FakeTriton
from proa.errors import EnvironmentLacks, SettingsError, SpecError


async def start(**settings):
    environ = {f"PROA_FRONTEND_{name.upper()}": str(value) for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proa.frontend"),
        env={**os.environ, **environ},
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process):
    """Exit code and log of a process that ends by itself."""
    _, log = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, log.decode()


async def test_a_spec_with_a_wrong_key_names_file_and_line(tmp_path):
    path = write_spec(tmp_path)
    lines = path.read_text(encoding="utf-8").replace("maxBatch", "maxBatsh").splitlines()
    path.write_text("\n".join(lines), encoding="utf-8")
    line = next(i for i, text in enumerate(lines, 1) if "maxBatsh" in text)
    code, log = await ended(await start(specs=path, workers="digits=127.0.0.1:1"))
    assert code == 2
    assert f"digits.yaml:{line}: " in log
    assert "maxBatsh" in log
    assert "Traceback" not in log


async def test_a_bad_worker_list_stops_the_start(tmp_path):
    code, log = await ended(await start(specs=write_spec(tmp_path), workers="digits=nowhere"))
    assert code == 2
    assert "PROA_FRONTEND_WORKERS: address 'nowhere' is not host:port" in log
    assert "Traceback" not in log


async def test_a_taken_port_is_named(tmp_path):
    async with FakeTriton() as other:
        process = await start(
            specs=write_spec(tmp_path),
            workers="digits=127.0.0.1:1",
            host="127.0.0.1",
            port=other.port,
            admin_port=0,
        )
        code, log = await ended(process)
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{other.port}: is the port taken?" in log
    assert "Traceback" not in log


async def test_a_frontend_without_workers_serves_until_it_is_told_to_stop(tmp_path):
    process = await start(
        specs=write_spec(tmp_path),
        workers="digits=127.0.0.1:1",
        host="127.0.0.1",
        port=0,
        admin_port=0,
    )
    async with asyncio.timeout(30):
        while not re.search(
            rb"worker not ready: worker 127.0.0.1:1", line := await process.stderr.readline()
        ):
            assert line
    process.send_signal(signal.SIGTERM)
    assert (await ended(process))[0] == 0


async def serve(**settings):
    async with frontend(**settings):
        pytest.fail("it started")


async def test_the_admin_port_taken_is_named(tmp_path):
    async with FakeTriton() as other:
        with pytest.raises(EnvironmentLacks, match=f"127.0.0.1:{other.port}"):
            await serve(
                specs=str(write_spec(tmp_path)),
                workers="digits=127.0.0.1:1",
                admin_port=other.port,
            )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": "letters=127.0.0.1:1"}, r"workers for \['letters'\], the specs \['digits'\]"),
        ({"workers": ""}, r"workers for \[\], the specs \['digits'\]"),
        ({"encoders": "127.0.0.1"}, "PROA_FRONTEND_ENCODERS: address '127.0.0.1' is not host:port"),
        ({"decoders": "a:1,b:99999"}, "PROA_FRONTEND_DECODERS: address 'b:99999'"),
        ({"specs": ","}, "PROA_FRONTEND_SPECS: needs specs of different names"),
    ],
)
async def test_settings_that_do_not_fit_together_are_told(tmp_path, changes, words):
    settings = {"specs": str(write_spec(tmp_path)), "workers": "digits=127.0.0.1:1", **changes}
    with pytest.raises(SettingsError, match=words):
        await serve(**settings)


async def test_the_same_spec_twice_is_told(tmp_path):
    path = write_spec(tmp_path)
    with pytest.raises(SettingsError, match="different names"):
        await serve(specs=f"{path},{path}", workers="digits=127.0.0.1:1")


async def test_a_spec_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"nothing\.yaml"):
        await serve(specs=str(tmp_path / "nothing.yaml"), workers="digits=127.0.0.1:1")
